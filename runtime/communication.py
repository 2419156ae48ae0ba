"""What the members of a group ask of the transport: a record of one call."""

from __future__ import annotations

from typing import Literal, NamedTuple

from shardlang.ir.collective import ReduceOp

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "exchange"]


class Call(NamedTuple):
    """One communication call, as one member makes it.

    Attributes:
        op: how an all-reduce combines.
        spare: an all-reduce may put its result into the message.
        sent: of an exchange, the elements for each member; None for equal shares both ways.
        received: of an exchange, the elements from each member.
    """

    kind: Kind
    op: ReduceOp = ReduceOp.SUM
    spare: bool = False
    sent: list[int] | None = None
    received: list[int] | None = None
