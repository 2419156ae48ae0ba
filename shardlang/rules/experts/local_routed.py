"""What devices run on rows in routed order, where every device has the rows of its own groups.

Written as on whole tensors they change nothing: a route only says on which device a row is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shardlang.ir.experts.route import Route, RouteAt
from shardlang.ir.experts.row_exchange import router_at
from shardlang.rules.experts.local_grouped import grouped_mm
from shardlang.rules.local_shape import Place, local_positions


def dispatch(x: Tensor, groups: Tensor, route: Route) -> Tensor:
    """The rows of `x`, to the devices that have their groups."""
    return x


def collect(x: Tensor, groups: Tensor, route: Route) -> Tensor:
    """The rows of `x`, from there back to where they came from."""
    return x


def routed_groups(groups: Tensor, route: Route) -> Tensor:
    """The groups of the rows in routed order."""
    return groups


@torch.compiler.disable  # type: ignore[untyped-decorator]
def routed_groups_at(groups: Tensor, at: RouteAt) -> Tensor:
    """The groups of the rows that a dispatch brings to this device; nothing is sent."""
    return router_at(at, groups.device).received_groups(groups)


def routed_mm(x: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
    """`grouped_mm` of rows in routed order."""
    made: Tensor = grouped_mm(x, weight, groups)
    return made


def routed_reshape(x: Tensor, tail: list[int]) -> Tensor:
    """Rows in routed order, the dims of each regrouped."""
    return x.reshape(x.shape[0], *tail)


def routed_rows(x: Tensor, groups: Tensor) -> Tensor:
    """`x[groups]` for groups in routed order."""
    return x[groups]


def routed_rows_here(x: Tensor, groups: Tensor, at: Place, total: int) -> Tensor:
    """`x[groups]`, all of which are here.

    Raises:
        IndexError: a group is none of the whole `x`.
    """
    found = local_positions(groups, at, x.shape[0], total)
    return x[torch.where(found < 0, x.shape[0], found)]
