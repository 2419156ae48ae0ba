"""The simulator of a forward program: all devices in one process, node by node in lockstep.

Every device has its own tensors and its own autograd graph; only the reshards join them, by the
moves of the run itself (`lockstep`). Rules are proven by it, one op at a time, with PyTorch's own
derivative of the op. A whole model is proven by its step program (`simulate_step`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from shardlang.ir.device_values import specialise
from shardlang.ir.graph import reshards_of
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram, apply_reshard, apply_reshards
from shardlang.ir.shards import shard_of
from shardlang.runtime.lockstep import (
    Guard,
    reshard_on_all,
    reshards_on_all,
    route_on_all,
)  # fmt: skip

PerDevice = list[Any]
Watch = Callable[[fx.Node, PerDevice], None]


class DeviceFault(RuntimeError):
    """An op that fails on a simulated device, or a reshard between them (`device` is None)."""

    def __init__(self, node: fx.Node, device: int | None, reason: str) -> None:
        where = "between the devices" if device is None else f"on device {device}"
        super().__init__(f"`{node.name}` fails {where}: {reason}")
        self.node, self.device, self.reason = node, device, reason


@contextmanager
def blaming(node: fx.Node, device: int | None = None) -> Iterator[None]:
    """Name the node in an error of torch."""
    try:
        yield
    except DeviceFault:
        raise
    except RuntimeError as error:
        raise DeviceFault(node, device, str(error).splitlines()[0]) from error


class Simulator:
    """Runs a `LocalProgram` on simulated devices."""

    def __init__(self, program: LocalProgram, watch: Watch | None = None) -> None:
        self.program, self.watch = program, watch
        self.mesh = program.mesh
        self.coords = list(program.mesh.coords())
        assert not any(leaf.gathered for leaf in program.leaves), "simulated by its step program"
        self._names = {leaf.node: leaf.name for leaf in program.leaves}

    def place(self, name: str, full: Tensor) -> list[Tensor]:
        """The local shards of one leaf's global value."""
        leaf = next(leaf for leaf in self.program.leaves if leaf.name == name)
        return [shard_of(full, leaf.layout, at).detach().clone() for at in self.coords]

    def run(self, leaves: Mapping[str, Sequence[Tensor]]) -> list[PerDevice]:
        """Run the program; `leaves` maps a leaf's name to its local tensors.

        Returns:
            For every result, the local value on each device.
        """
        values: dict[fx.Node, PerDevice] = {}
        last = last_uses(self.program.graph)
        for node in self.program.graph.nodes:
            if node.op == "output":
                return [[None] * len(self.coords) if n is None else values[n] for n in node.args[0]]
            if node.op == "placeholder":
                values[node] = list(leaves[self._names[node.name]])
            else:
                values[node] = self._call(node, values)
                if self.watch is not None:
                    self.watch(node, values[node])
            if self.watch is None:
                for dead in last.get(node, ()):
                    values.pop(dead, None)
        raise AssertionError("the graph has no output")

    def _call(self, node: fx.Node, values: dict[fx.Node, PerDevice]) -> PerDevice:
        if node.target in (apply_reshard, apply_reshards):
            with blaming(node):
                return self._reshard(node, values, functools.partial(blaming, node))
        state = torch.get_rng_state() if info(node).random else None
        out = []
        for device, at in enumerate(self.coords):
            if state is not None:
                torch.set_rng_state(state)
            out.append(self._on(node, device, at, values))
        return out

    def _reshard(self, node: fx.Node, values: dict[fx.Node, PerDevice], guard: Guard) -> PerDevice:
        pairs = reshards_of(node)
        if node.target is apply_reshards:
            xs = [[values[x][d] for x, _ in pairs] for d in range(len(self.coords))]
            made = reshards_on_all([each for _, each in pairs], xs, self.mesh, guard)
            return [tuple(own) for own in made]
        ((source, reshard),) = pairs
        if reshard.route is not None:
            by = node.args[2]
            assert isinstance(by, fx.Node), "a route is along the groups of all rows"
            return route_on_all(reshard, values[source], values[by], self.mesh, guard)
        return reshard_on_all(reshard, values[source], self.mesh, guard)

    def _on(
        self, node: fx.Node, device: int, at: Coord, values: dict[fx.Node, PerDevice]
    ) -> object:
        args, kwargs = specialise((node.args, node.kwargs), at)
        args = fx.map_arg(args, lambda n: values[n][device])
        kwargs = fx.map_arg(kwargs, lambda n: values[n][device])
        assert callable(node.target)
        with blaming(node, device):
            return node.target(*args, **kwargs)


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that nothing reads after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    gone: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if node.op != "output":
            gone.setdefault(node, []).append(source)
    return gone
