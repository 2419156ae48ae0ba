"""The moves of a route: rows to the devices that have their groups, and back.

Unlike those of other reshards, their sizes are known only when the groups are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.experts.row_exchange import RowExchange
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Group


@dataclass(slots=True)
class Carry:
    """A dispatch of one row exchange, or with `inverse` a collect; rows are `row`, a shape."""

    reads_shard: ClassVar[bool] = False
    group: Group
    label: str
    exchange: RowExchange
    inverse: bool
    row: tuple[int, ...]

    @property
    def call(self) -> Call:
        """An all-to-all with the sizes of the exchange."""
        sent, received = self._counts
        width = math.prod(self.row)
        return Call(
            "exchange", sent=[n * width for n in sent], received=[n * width for n in received]
        )

    @property
    def _counts(self) -> tuple[list[int], list[int]]:
        """Rows sent to each member, and received."""
        sent, received = self.exchange.sent, self.exchange.received
        return (received, sent) if self.inverse else (sent, received)

    def pack(self, x: Tensor) -> Tensor:
        """The rows by the member that they go to, flat."""
        return (x if self.inverse else x[self.exchange.order]).reshape(-1)

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """The rows that arrive; those that came back in their own places."""
        rows = message.view(sum(self._counts[1]), *self.row)
        return put_back(rows, self.exchange.order) if self.inverse else rows


def carry(
    collective: Collective, group: Group, exchange: RowExchange, x: Tensor, label: str
) -> Carry:
    """The move of a dispatch or collect for the rows of `x`."""
    return Carry(group, label, exchange, collective.kind is Kind.COLLECT, tuple(x.shape[1:]))


def put_back(rows: Tensor, order: Tensor) -> Tensor:
    """Rows in the order of the members that they went to, in their own places again."""
    return torch.empty_like(rows).index_copy_(0, order, rows)
