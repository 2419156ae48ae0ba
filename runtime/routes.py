"""The moves of a route: rows to the devices that have their groups, and back.

Unlike those of other steps, their sizes are known only when the groups are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.journey import Journey
from shardlang.runtime.watch import named
from shardlang.runtime.wire import Wire


@dataclass(slots=True)
class Carry:
    """A dispatch on one device, or with `inverse` a collect."""

    wire: Wire
    label: str
    inverse: bool

    def __call__(self, x: Tensor, journey: Journey) -> Tensor:
        row = x.shape[1:].numel()
        sent, received = journey.sent, journey.received
        if self.inverse:
            sent, received = received, sent
        else:
            x = x[journey.order]
        moved = named(
            self.label, self.wire.exchange, x.reshape(-1),
            [n * row for n in sent], [n * row for n in received],
        ).view(sum(received), *x.shape[1:])  # fmt: skip
        return put_back(moved, journey.order) if self.inverse else moved


def put_back(rows: Tensor, order: Tensor) -> Tensor:
    """Rows in the order of the members that they went to, in their own places again."""
    return torch.empty_like(rows).index_copy_(0, order, rows)


def carry_all(xs: Sequence[Tensor], journeys: Sequence[Journey], inverse: bool) -> list[Tensor]:
    """A dispatch, or with `inverse` a collect, on all devices of a group at once."""
    if inverse:
        pieces = [x.split_with_sizes(j.received) for x, j in zip(xs, journeys, strict=True)]
    else:
        pieces = [x[j.order].split_with_sizes(j.sent) for x, j in zip(xs, journeys, strict=True)]
    joined = [torch.cat(rows) for rows in zip(*pieces, strict=True)]
    if not inverse:
        return joined
    return [put_back(rows, j.order) for rows, j in zip(joined, journeys, strict=True)]
