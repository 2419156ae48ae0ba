"""The simulator: all devices in one process, node by node in lockstep.

Every device has its own tensors and its own autograd graph; only the steps join them, with the
forward and backward moves of the step table. What holds here holds for the program on any backend
that moves data as the table says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from shardlang.ir import Axis, Coord, Mesh
from shardlang.ir.here import specialise
from shardlang.ir.journey import Journey, router_at
from shardlang.ir.pieces import cut, join, pad, piece_of
from shardlang.ir.program import LocalProgram, apply_step, apply_steps
from shardlang.ir.steps import Move, Step
from shardlang.runtime.routes import carry_all

PerDevice = list[Any]
Watch = Callable[[fx.Node, PerDevice], None]


def move_all(
    move: Move, step: Step, xs: Sequence[Tensor], mesh: Mesh, *, backward: bool
) -> list[Tensor]:
    """Do one move on all devices at once."""
    axes = step.backward_axes if backward else step.axes
    if move is Move.NOTHING:
        return [x.view_as(x) for x in xs]
    coords = list(mesh.coords())
    if move in (Move.SLICE, Move.PAD):
        dim, narrow, wide = step.cut()
        act = cut if move is Move.SLICE else pad
        return [act(x, dim, narrow, wide, at) for x, at in zip(xs, coords, strict=True)]
    out: list[Tensor] = list(xs)
    for group in mesh.groups(axes):
        mine = [xs[device] for device in group]
        made = _move_group(move, step, mine, [coords[d] for d in group], backward)
        for device, x in zip(group, made, strict=True):
            out[device] = x
    return out


def _move_group(
    move: Move, step: Step, xs: list[Tensor], coords: list[Coord], backward: bool
) -> list[Tensor]:
    if move is Move.FIRST:
        return [x.clone() if i == 0 else torch.zeros_like(x) for i, x in enumerate(xs)]
    if move is Move.ALL_REDUCE:
        total = _reduce(xs, step.reduce)
        return [total.clone() for _ in xs]
    if move in (Move.ALL_TO_ALL, Move.PERMUTE):
        return _exchange(step, xs, coords, backward)
    dim, narrow, wide = step.cut()
    if move is Move.ALL_GATHER:
        whole = join(xs, dim, narrow, wide, coords)
        return [whole.clone() for _ in xs]
    assert move is Move.REDUCE_SCATTER
    total = _reduce(xs, "sum")
    return [cut(total, dim, narrow, wide, at).clone() for at in coords]


_COMBINE: dict[str, Callable[..., Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def _reduce(xs: list[Tensor], how: str) -> Tensor:
    return functools.reduce(_COMBINE[how], xs)


def _exchange(step: Step, xs: list[Tensor], coords: list[Coord], backward: bool) -> list[Tensor]:
    """All-to-all and permute: join along the dim the axes leave, cut along the one they enter."""
    src, dst = (step.dst, step.src) if backward else (step.src, step.dst)
    leave, enter = src.dim_of(step.axes[0]), dst.dim_of(step.axes[0])
    assert leave is not None and enter is not None
    joined = join(xs, leave, src.dims[leave], src.dims[leave].without(step.axes), coords)
    wide = dst.dims[enter].without(step.axes)
    return [cut(joined, enter, dst.dims[enter], wide, at).clone() for at in coords]


class _SimulatedStep(torch.autograd.Function):
    """One step on all devices, with the table's backward."""

    @staticmethod
    def forward(ctx: Any, step: Step, mesh: Mesh, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.step, ctx.mesh = step, mesh
        out = move_all(step.forward, step, xs, mesh, backward=False)
        carries = out[0].is_floating_point() or out[0].is_complex()
        if step.reduce != "sum" or not carries:
            ctx.mark_non_differentiable(*out)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        moved = move_all(ctx.step.backward, ctx.step, grads, ctx.mesh, backward=True)
        return (None, None, *moved)


def simulated_step(step: Step, xs: Sequence[Tensor], mesh: Mesh) -> list[Tensor]:
    """Apply one step to the values of all devices."""
    return list(_SimulatedStep.apply(step, mesh, *xs))  # type: ignore[no-untyped-call]


class _SimulatedRoute(torch.autograd.Function):
    """A dispatch or collect on all devices; its gradient is the other of the two."""

    @staticmethod
    def forward(ctx: Any, step: Step, mesh: Mesh, journeys: Any, *xs: Tensor) -> tuple[Tensor, ...]:
        assert step.route is not None
        ctx.step, ctx.mesh, ctx.journeys = step, mesh, journeys
        return tuple(_carry(step, mesh, journeys, xs, step.route.inverse))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        back = _carry(ctx.step, ctx.mesh, ctx.journeys, grads, not ctx.step.route.inverse)
        return (None, None, None, *back)


def _carry(
    step: Step, mesh: Mesh, journeys: Sequence[Journey], xs: Sequence[Tensor], inverse: bool
) -> list[Tensor]:
    out = list(xs)
    for group in mesh.groups(step.axes):
        made = carry_all([xs[d] for d in group], [journeys[d] for d in group], inverse)
        for device, x in zip(group, made, strict=True):
            out[device] = x
    return out


def simulated_route(
    step: Step, xs: Sequence[Tensor], groups: Sequence[Tensor], mesh: Mesh
) -> list[Tensor]:
    """Apply a dispatch or collect to the rows of all devices."""
    assert step.route is not None
    journeys = [
        router_at(step.route.at(at), one.device).journey(one)
        for at, one in zip(mesh.coords(), groups, strict=True)
    ]
    return list(_SimulatedRoute.apply(step, mesh, journeys, *xs))  # type: ignore[no-untyped-call]


class DeviceFault(RuntimeError):
    """An op that fails on a simulated device: its local pieces do not fit together."""

    def __init__(self, node: fx.Node, device: int, reason: str) -> None:
        super().__init__(f"`{node.name}` fails on device {device}: {reason}")
        self.node, self.device, self.reason = node, device, reason


class Simulator:
    """Runs a `LocalProgram` on simulated devices."""

    def __init__(self, program: LocalProgram, watch: Watch | None = None) -> None:
        self.program, self.watch = program, watch
        self.mesh = program.mesh
        self.coords = list(program.mesh.coords())

    def place(self, name: str, full: Tensor) -> list[Tensor]:
        """The local pieces of one leaf's global value."""
        leaf = next(leaf for leaf in self.program.leaves if leaf.name == name)
        return [piece_of(full, leaf.layout, at).detach().clone() for at in self.coords]

    def run(self, leaves: Mapping[str, Sequence[Tensor]]) -> list[PerDevice]:
        """Run the program; `leaves` maps a leaf's name to its local tensors.

        Returns:
            For every result, the local value on each device.
        """
        names = {leaf.node: leaf.name for leaf in self.program.leaves}
        values: dict[fx.Node, PerDevice] = {}
        last = _last_uses(self.program.graph)
        for node in self.program.graph.nodes:
            if node.op == "output":
                return [[None] * len(self.coords) if n is None else values[n] for n in node.args[0]]
            if node.op == "placeholder":
                values[node] = list(leaves[names[node.name]])
            else:
                values[node] = self._call(node, values)
                if self.watch is not None:
                    self.watch(node, values[node])
            if self.watch is None:
                for dead in last.get(node, ()):
                    values.pop(dead, None)
        raise AssertionError("the graph has no output")

    def _call(self, node: fx.Node, values: dict[fx.Node, PerDevice]) -> PerDevice:
        if node.target is apply_step:
            source, step, *by = node.args
            assert isinstance(source, fx.Node) and isinstance(step, Step)
            if by:
                return simulated_route(step, values[source], values[by[0]], self.mesh)
            return simulated_step(step, values[source], self.mesh)
        if node.target is apply_steps:
            sources, steps = node.args
            pairs = zip(sources, steps, strict=True)  # type: ignore[arg-type]
            moved = [simulated_step(s, values[x], self.mesh) for x, s in pairs]
            return [tuple(each[d] for each in moved) for d in range(len(self.coords))]
        state = torch.get_rng_state() if node.meta.get("random") else None
        out = []
        for device, at in enumerate(self.coords):
            if state is not None:
                torch.set_rng_state(state)
            out.append(self._on(node, device, at, values))
        return out

    def _on(self, node: fx.Node, device: int, at: Coord, values: dict[fx.Node, PerDevice]) -> Any:
        args, kwargs = specialise((node.args, node.kwargs), at)
        args = fx.map_arg(args, lambda n: values[n][device])
        kwargs = fx.map_arg(kwargs, lambda n: values[n][device])
        assert callable(node.target)
        try:
            return node.target(*args, **kwargs)
        except RuntimeError as error:
            raise DeviceFault(node, device, str(error).splitlines()[0]) from error


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
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


def axis_named(mesh: Mesh, name: str) -> Axis:
    """The axis of that name."""
    return mesh[name]
