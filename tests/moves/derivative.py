"""Values and gradients as whole tensors, and what makes one collective the adjoint of another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.collective import Collective
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.ir.shards import shard_of
from shardlang.ir.state import State
from tests.moves import meaning


@dataclass(frozen=True)
class Value:
    """A value or gradient in a layout: one whole tensor for every place along `axes`.

    Along these axes the devices hold summands; along all others, parts of one tensor or copies.
    """

    layout: Layout
    mesh: Mesh
    summands: dict[tuple[int, ...], Tensor]

    @property
    def total(self) -> Tensor:
        """The whole tensor."""
        return torch.stack(list(self.summands.values())).sum(0)

    @staticmethod
    def drawn(layout: Layout, mesh: Mesh, seed: int) -> Value:
        """A random value of float64."""
        made = torch.Generator().manual_seed(seed)
        counts = [range(a.size) for a in summed(layout, mesh)]
        found = {
            at: torch.randn(layout.shape, generator=made, dtype=torch.float64)
            for at in itertools.product(*counts)
        }
        return Value(layout, mesh, found)

    @staticmethod
    def of(layout: Layout, mesh: Mesh, shards: Sequence[Tensor]) -> Value:
        """The value that the devices hold; all that hold one index of one summand agree on it."""
        found: dict[tuple[int, ...], Tensor] = {}
        for at, shard in zip(mesh.coords(), shards, strict=True):
            full = found.setdefault(_place(at, layout, mesh), shard.new_zeros(layout.shape))
            full[meaning.crossed(layout, at)] = shard
        for at, shard in zip(mesh.coords(), shards, strict=True):
            held = shard_of(found[_place(at, layout, mesh)], layout, at)
            torch.testing.assert_close(held, shard, rtol=0, atol=1e-12)
        return Value(layout, mesh, found)

    def shards(self) -> list[Tensor]:
        """What every device holds."""
        return [
            shard_of(self.summands[_place(at, self.layout, self.mesh)], self.layout, at)
            for at in self.mesh.coords()
        ]


def summed(layout: Layout, mesh: Mesh) -> list[Axis]:
    """The axes along which the devices hold summands."""
    return [axis for axis in mesh.axes if axis in layout.partial]


def _place(at: Coord, layout: Layout, mesh: Mesh) -> tuple[int, ...]:
    return tuple(at[axis.name] for axis in summed(layout, mesh))


def product(value: Value, gradient: Value) -> Tensor:
    """The inner product: every index of every summand counts once, of the value or the gradient."""
    layout = value.layout
    assert gradient.layout == layout.dual()
    total = torch.zeros((), dtype=torch.float64)
    for at in value.mesh.coords():
        once = (a for a in value.mesh.axes if layout.state(a) in (State.SHARDED, State.INVARIANT))
        if all(at[a.name] == 0 for a in once):
            mine = value.summands[_place(at, layout, value.mesh)]
            total = total + (mine * gradient.summands[_place(at, layout.dual(), value.mesh)]).sum()
    return total


def moved(collective: Collective, value: Value) -> Value:
    """The value after a collective: in another layout, and the same."""
    assert value.layout == collective.src
    found = meaning.moved(collective, value.shards(), value.mesh)
    for at, shard in zip(value.mesh.coords(), found, strict=True):
        assert tuple(shard.shape) == collective.local_shape(at)
    made = Value.of(collective.dst, value.mesh, found)
    total = value.total
    if collective.reads is not None:
        (place, _), reads = collective.dims, collective.reads
        assert place is not None
        total = meaning.read(total, place, reads)
    torch.testing.assert_close(made.total, total, rtol=1e-12, atol=1e-12)
    return made


def check_derivative(made: Reshard, mesh: Mesh) -> None:
    """`<A x, y> = <x, A* y>`, the derivative of the first by x is A* y, and x stays what it is."""
    x = Value.drawn(made.src, mesh, 1)
    y = Value.drawn(made.dst.dual(), mesh, 2)
    for summand in x.summands.values():
        summand.requires_grad_()
    forth = product(moved(made.forward, x), y)
    back = moved(made.adjoint, y)
    torch.testing.assert_close(forth, product(x, back), rtol=1e-12, atol=1e-12)
    wanted = list(x.summands.values())
    for at, grad in zip(x.summands, torch.autograd.grad(forth, wanted), strict=True):
        copies = _copies(at, made.src, back)
        torch.testing.assert_close(grad, copies, rtol=1e-12, atol=1e-12)


def _copies(place: tuple[int, ...], layout: Layout, back: Value) -> Tensor:
    """The gradient of one summand: the sum of what its replicas have."""
    mesh, found = back.mesh, {}
    for at in mesh.coords():
        if _place(at, layout, mesh) == place:
            key = _place(at, back.layout, mesh)
            found[key] = back.summands[key]
    return torch.stack(list(found.values())).sum(0)
