"""Which operands of an op count something: rows, classes, places along a dim.

A number outside of what an op takes fails inside it, or not at all where what it counts is split;
so rules say which numbers their ops take, and inputs are checked before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from shardlang.ir.node import tensor_of
from shardlang.rules.call import Call


@dataclass(frozen=True, slots=True)
class Indexed:
    """One operand that counts: numbers from `low` up to `high`, without `high`, or `ignored`."""

    operand: fx.Node
    low: int
    high: int
    ignored: int | None = None


def table_rows(call: Call) -> Iterator[Indexed]:
    """The rows of a table that are looked up."""
    yield Indexed(call.operand("indices"), 0, call.shape("weight")[0])


def classes(call: Call) -> Iterator[Indexed]:
    """The classes that scores are compared with; none where the target is a probability of each."""
    scores = call.shape("self")
    target = call.operand("target")
    if not tensor_of(target).is_floating_point():
        yield Indexed(target, 0, scores[1 if len(scores) > 1 else 0], call.integer("ignore_index"))


def along_dim(call: Call) -> Iterator[Indexed]:
    """Places along one dim of the first operand."""
    if call.shape("self"):
        yield Indexed(call.operand("index"), 0, call.shape("self")[call.dim()])


def along_first_dims(call: Call) -> Iterator[Indexed]:
    """What `x[i, j]` takes; a mask, which stands for several dims, ends it."""
    for index, size in zip(call.operand_list("indices"), call.shape("self"), strict=False):
        if index is not None:
            if tensor_of(index).dtype in (torch.bool, torch.uint8):
                return
            yield Indexed(index, -size, size)
