"""Dispatch and collect on real process groups; what each rank had and got, forward and backward."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.ir.shards import shard_of
from shardlang.runtime.groups import Groups, join
from tests.ways import routed

A, B = Axis("a", 2), Axis("b", 2)
LINE, GRID = Mesh((A,)), Mesh((A, B))
ROWS, EXPERTS = 11, 5
CHOICES = {
    "uneven": [4, 0, 2, 2, 1, 3, 0, 4, 4, 2, 1],
    "none for some": [3, 4, 4, 3, 3, 3, 4, 3, 4, 4, 3],
    "all for one": [1] * ROWS,
}
SPLITS = {
    LINE: [((A,), (A,))],
    GRID: [((A, B), (A, B)), ((A, B), (B,)), ((B, A), (B,)), ((A, B), (B, A)), ((A,), (A,))],
}
"""By mesh: the axes of the rows, and of the experts."""
DTYPES = (torch.float64, torch.bfloat16)


def route_of(mesh: Mesh, rows: tuple[Axis, ...], experts: tuple[Axis, ...]) -> Route:
    """The route between rows and experts split so."""
    axes = tuple(axis for axis in mesh.axes if axis in experts)
    return Route(axes, DimLayout.shard(ROWS, rows), DimLayout.shard(EXPERTS, experts))


def rows_of(dtype: torch.dtype) -> Tensor:
    """All rows, each another."""
    return torch.arange(3.0 * ROWS).view(ROWS, 3).to(dtype)


def one(route: Route, groups: Groups, choice: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows sent and brought back, on this rank."""
    layout = Layout((route.rows, DimLayout.whole(3)))
    numbers = shard_of(torch.tensor(CHOICES[choice]), Layout((route.known,)), groups.coord)
    there = routed(Reshard(route.axes, layout, layout, route=route), groups)
    inverse = Route(route.axes, route.rows, route.groups, inverse=True)
    back = routed(Reshard(route.axes, layout, layout, route=inverse), groups)
    x = shard_of(rows_of(dtype), layout, groups.coord)
    sent = there[0](x, numbers)
    home = back[0](sent * 2, numbers)
    grad = there[1](back[1](x + 1, numbers) * 2, numbers)
    return {"x": x, "sent": sent, "home": home, "grad": grad}


def every_route() -> list[dict[str, Tensor]]:
    """Every case of this number of processes."""
    mesh = LINE if int(os.environ["WORLD_SIZE"]) == 2 else GRID
    groups = join(mesh, timeout_s=30)
    return [
        one(route_of(mesh, *split), groups, choice, dtype)
        for split in SPLITS[mesh]
        for choice in CHOICES
        for dtype in DTYPES
    ]


def owned(route: Route, coord: Coord, rows: Tensor, choice: str) -> Tensor:
    """Those of `rows` (their first columns count them) whose experts the device at `coord` has."""
    mine = route.groups.indices(coord)
    numbers = torch.tensor(CHOICES[choice])[(rows[:, 0] / 3).long()]
    return rows[torch.isin(numbers, torch.tensor(mine))]
