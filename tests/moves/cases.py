"""A drawn case: reshards, inputs and gradients of all devices, and what should come of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.ir.shards import shard_of
from tests.moves import draw, meaning, values

Tensors = list[Tensor]


@dataclass(frozen=True)
class One:
    """A reshard and the shards of all devices.

    Attributes:
        xs: the operand's, by device.
        grads: the gradients of the result; None where none flows.
        by: of a route, the group of every row.
    """

    reshard: Reshard
    xs: Tensors
    grads: Tensors | None
    by: list[int] | None = None

    def known(self, at: Coord) -> Tensor:
        """The groups of the rows that a device knows."""
        assert self.reshard.route is not None
        return shard_of(torch.tensor(self.by), Layout((self.reshard.route.known,)), at)

    def expected(self, mesh: Mesh) -> tuple[Tensors, Tensors | None]:
        """The results of all devices, and the gradients of their operands."""
        if self.by is not None:
            ys = meaning.carried(self.reshard.forward, self.by, self.xs, mesh)
            back = self.grads and meaning.carried(self.reshard.adjoint, self.by, self.grads, mesh)
            return ys, back
        back = self.grads and meaning.moved(self.reshard.adjoint, self.grads, mesh)
        return meaning.moved(self.reshard.forward, self.xs, mesh), back


@dataclass(frozen=True)
class Case:
    """Reshards of one mesh; several are sent together."""

    number: int
    kind: str
    mesh: Mesh
    ones: tuple[One, ...]

    def __str__(self) -> str:
        reshards = "; ".join(f"{one.xs[0].dtype} {one.reshard}" for one in self.ones)
        return f"case {self.number} ({self.kind}) on {self.mesh}: {reshards}"


BUNDLE = "bucket"
ALL_KINDS = (*draw.KINDS, *draw.ROUTES, BUNDLE)


def case(number: int, devices: int | None = None) -> Case:
    """The case of that number, always the same; on a mesh of so many devices if given."""
    rng = random.Random(f"{number} {devices}")
    mesh, kind = draw.mesh_of(rng, devices), ALL_KINDS[number % len(ALL_KINDS)]
    if kind in draw.ROUTES:
        return Case(number, kind, mesh, (_routed(rng, mesh, kind),))
    if kind != BUNDLE:
        return Case(number, kind, mesh, (_one(rng, mesh, kind),))
    kinds = [k for k in draw.KINDS if k not in ("max", "min")]
    chosen = [rng.choice(kinds)] * 3 if rng.random() < 0.5 else rng.choices(kinds, k=4)
    dtype = rng.choice(values.DTYPES)
    mixed = rng.random() < 0.3
    return Case(number, kind, mesh, tuple(
        _one(rng, mesh, k, rng.choice(values.DTYPES) if mixed else dtype) for k in chosen
    ))  # fmt: skip


def _one(rng: random.Random, mesh: Mesh, kind: str, dtype: torch.dtype | None = None) -> One:
    reshard = draw.reshard_of(rng, mesh, kind)
    if dtype is None:
        extreme = kind in ("max", "min")
        dtype = rng.choice([d for d in values.DTYPES if not (extreme and d.is_complex)])
    flows = (dtype.is_floating_point or dtype.is_complex) and reshard.reduce is ReduceOp.SUM
    xs = _shards(rng, reshard.src, mesh, dtype)
    grads = _shards(rng, reshard.dst, mesh, dtype) if flows and rng.random() < 0.9 else None
    return One(reshard, xs, grads)


def _shards(rng: random.Random, layout: Layout, mesh: Mesh, dtype: torch.dtype) -> Tensors:
    """A tensor of its own on every device; of indices that two devices hold, one value."""
    look = rng.choice(values.looks(dtype))
    held = sum(math.prod(layout.local_shape(at)) for at in mesh.coords())
    ways = math.prod(axis.size for axis in mesh.axes if layout.dim_of(axis) is None)
    if held == ways * math.prod(layout.shape):
        return [look(values.draw(layout.local_shape(at), dtype, rng)) for at in mesh.coords()]
    full = values.draw(layout.shape, dtype, rng)
    look = values.turned if look is values.expanded else look
    return [look(shard_of(full, layout, at)) for at in mesh.coords()]


def _routed(rng: random.Random, mesh: Mesh, kind: str) -> One:
    reshard, by = draw.route_of(rng, mesh, kind)
    assert reshard.route is not None
    row = reshard.src.shape[1:]
    lying = [(len(reshard.route.rows.indices(at)), *row) for at in mesh.coords()]
    away = [(len(rows), *row) for rows in meaning.routed_rows(reshard.route, by, mesh)]
    before, after = (away, lying) if reshard.route.inverse else (lying, away)
    dtype = rng.choice(values.DTYPES)
    flows = dtype.is_floating_point or dtype.is_complex
    look = rng.choice(values.looks(dtype))
    xs, grads = ([look(values.draw(shape, dtype, rng)) for shape in end] for end in (before, after))
    return One(reshard, xs, grads if flows else None, by)
