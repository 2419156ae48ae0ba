"""Disjoint partial sums: which ops leave them, and which keep them so.

Where the groups of a product are split, or the rows of a table, one device computes each row of the
result, and all others have zeros there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Rule
from shardlang.rules.call import Call
from shardlang.rules.registry import traits_of
from shardlang.rules.zeros import maps_zeros


@dataclass(frozen=True, slots=True)
class Rows:
    """Which device has which rows of a disjoint partial sum.

    Attributes:
        chosen_by: the value that chooses a row of the table for every row.
        split: how the rows of the table are split.
        dims: how many leading dims number the rows.
    """

    chosen_by: fx.Node
    split: DimLayout
    dims: int


def rows_left(node: fx.Node, axes: Iterable[Axis]) -> Rows | None:
    """The rows of the partial sum that an op leaves which picks rows of a split table."""
    picks = traits_of(node).picks
    if picks is None:
        return None
    split = sharding_of(node).factors[picks.table]
    if not set(axes) <= set(split.axes):
        return None
    chosen = Call(node).operands[picks.chooser]
    return Rows(chosen, split, len(tensor_of(chosen).shape))


def own_rows_read(rule: Rule) -> frozenset[int]:
    """The operands of which an op reads, for the rows that pick from its part, those rows alone.

    They are those that have the rows of the chooser, beside the table and the chooser itself.
    """
    picks = rule.traits.picks
    rows = rule.operands[picks.chooser].dims if picks is not None else ()
    if picks is None or not rows:
        return frozenset()
    return frozenset(
        slot
        for slot, operand in enumerate(rule.operands)
        if slot != picks.chooser and operand.dims[: len(rows)] == rows
    )


def keeps_zeros(node: fx.Node, slots: frozenset[int], dims: int) -> bool:
    """Whether an op makes rows of zeros of rows of zeros in some operands, each by itself.

    Args:
        slots: the operands.
        dims: how many of their leading dims number the rows.
    """
    rule = sharding_of(node).rule
    same = len({_rows(rule, i, dims) for i in slots}) == 1
    return same and _by_row(rule, slots, dims) and maps_zeros(node, slots)


def _rows(rule: Rule, slot: int, dims: int) -> Sequence[object]:
    return rule.operands[slot].dims[:dims]


def _by_row(rule: Rule, slots: frozenset[int], dims: int) -> bool:
    """Whether every result has the rows of some operands, and each row is made of its own."""
    read = [rule.operands[slot].dims for slot in slots]
    rows = read[0][:dims]
    names = {name for dim in rows for block in dim for name in block}
    rest = [dim for one in (*read, *rule.results) for dim in one[dims:]]
    apart = names.isdisjoint(name for dim in rest for block in dim for name in block)
    return len(rows) == dims and apart and all(one[:dims] == rows for one in rule.results)
