"""The simulator of a step program: all devices in one process, node by node in lockstep.

Only the collectives join the devices, by the moves of the run itself (`lockstep`). What holds here
holds for the program on any backend that makes the calls of `communication` as they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from shardlang.ir.device_values import specialise
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info
from shardlang.ir.shards import shard_of
from shardlang.ir.spare import reduces_in_place
from shardlang.ir.step import (
    StepProgram,
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    routed_by,
    started_by,
)
from shardlang.runtime.lockstep import carry_all, lowered, move_all, move_together
from shardlang.runtime.simulate import PerDevice, Watch, blaming, last_uses
from shardlang.vjp.recorded import as_run


class Started:
    """What one device is given by a collective that has started, once it waits.

    It is made of what was given at the start; a run may read that at any time until the wait.
    """

    def __init__(self, made: object, given: Sequence[Tensor]) -> None:
        self._made, self._given = made, [(x, x._version) for x in given]

    def wait(self) -> object:
        """What the collective gives.

        Raises:
            RuntimeError: what it was given has changed since.
        """
        if any(x._version != before for x, before in self._given):
            raise RuntimeError("what it sends was written before it was waited for")
        return self._made


def spoil(given: Iterable[Tensor]) -> None:
    """Overwrite what an all-reduce may put its sum into: who still reads it gets no number.

    Where values are watched they stay, since they are looked at later.
    """
    for x in given:
        if x.is_contiguous() and x.is_floating_point():
            x.fill_(float("nan"))


class GraphSimulator:
    """Runs a graph of a step on simulated devices."""

    def __init__(self, mesh: Mesh, graph: fx.Graph, watch: Watch | None = None) -> None:
        self.mesh, self.graph, self.watch = mesh, graph, watch
        self.coords = list(mesh.coords())
        self._devices = range(len(self.coords))
        self._last = last_uses(graph)

    @torch.no_grad()
    def execute(self, given: Sequence[Sequence[Tensor]]) -> dict[fx.Node, PerDevice]:
        """Run it on the local tensors of every input, and give what it returns by node."""
        todo = iter(given)
        values: dict[fx.Node, PerDevice] = {}
        for node in self.graph.nodes:
            if node.op == "output":
                break
            values[node] = list(next(todo)) if node.op == "placeholder" else self.call(node, values)
            if self.watch is not None:
                self.watch(node, values[node])
            for dead in self._last.get(node, ()):
                values.pop(dead, None)
        return values

    def call(self, node: fx.Node, values: Mapping[fx.Node, PerDevice]) -> PerDevice:
        """What a node gives on every device, of the values that it reads."""
        with blaming(node):
            if is_wait(node):
                return [started.wait() for started in values[started_by(node)]]
            if is_start(node):
                made = self._collective(node, values)
                given = [[values[x][d] for x, _ in collectives_of(node)] for d in self._devices]
                if reduces_in_place(node) and self.watch is None:
                    spoil(x for (x,) in given)
                return [Started(*one) for one in zip(made, given, strict=True)]
            if is_collective(node):
                return self._collective(node, values)
        return self._on_each(node, values)

    def _collective(self, node: fx.Node, values: Mapping[fx.Node, PerDevice]) -> PerDevice:
        pairs, by = collectives_of(node), routed_by(node)
        x, collective = pairs[0]
        if by is not None:
            return carry_all(collective, values[x], values[by], self.mesh)
        if not is_bucket(node):
            return move_all(lowered(collective, self.mesh), values[x])
        moves = list(zip(*(lowered(c, self.mesh) for _, c in pairs), strict=True))
        xs = [[values[x][d] for x, _ in pairs] for d in self._devices]
        return [tuple(own) for own in move_together(moves, xs)]

    def _on_each(self, node: fx.Node, values: Mapping[fx.Node, PerDevice]) -> PerDevice:
        state = torch.get_rng_state() if info(node).random else None
        out: PerDevice = []
        for device, at in enumerate(self.coords):
            if state is not None:
                torch.set_rng_state(state)
            args, kwargs = specialise((node.args, node.kwargs), at)
            own = {n: values[n][device] for n in node.all_input_nodes}
            args, kwargs = fx.map_arg((args, kwargs), own.__getitem__)
            call = as_run(node, at)
            with blaming(node, device):
                out.append(call(*args, **kwargs))
        return out


class StepSimulator(GraphSimulator):
    """Runs a `StepProgram` on simulated devices."""

    def __init__(
        self, program: StepProgram, watch: Watch | None = None, mesh: Mesh | None = None
    ) -> None:
        """`mesh`: the program's own, or the devices as they compute one microbatch."""
        super().__init__(mesh or program.mesh, program.graph, watch)
        self.program = program

    def place(self, full: Tensor, layout: Layout) -> list[Tensor]:
        """The shards of a whole value."""
        return [shard_of(full, layout, at).detach().clone() for at in self.coords]

    def run(
        self, leaves: Mapping[str, Sequence[Tensor]], cotangents: Mapping[str, Sequence[Tensor]]
    ) -> tuple[list[PerDevice], dict[str, PerDevice]]:
        """Run the program on local tensors by device.

        Returns:
            For every result its local values, and for every leaf with a gradient those of it.
        """
        given = [leaves[leaf.name] for leaf in self.program.leaves]
        given += [cotangents[name] for name in self.program.cotangents]
        values = self.execute(given)
        results, gradients = self.program.returned
        made = dict(zip(self.program.gradients, gradients, strict=True))
        return [values[n] for n in results], {k: values[n] for k, n in made.items()}
