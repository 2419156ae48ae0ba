"""What holds of partial sums: the ops that pass them on may do so.

An op that is not linear in its operands may pass on disjoint partial sums alone, each row of which
is zero on all devices but one. This walks the finished graph, and knows what the rules say of each
op, and nothing of the cut that chose them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shardlang.ir.graph import is_item, is_reshard, producer, reshard_of, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.passes.invariants.invariant import View, invariant
from shardlang.rules.call import Call
from shardlang.rules.disjoint import Rows, keeps_zeros, rows_left

Found = dict[fx.Node, Rows | None]


@invariant
def partials_pass(view: View) -> Iterator[str]:
    """An op passes on partial sums that it is linear in, or rows of zeros that it keeps."""
    for axis in view.graph.mesh.axes:
        rows: Found = {}
        for node in view.nodes:
            if is_reshard(node):
                _pass_reshard(node, axis, rows)
            elif info(node).sharding is not None and not is_item(node):
                yield from _visit(node, axis, rows)


def _pass_reshard(node: fx.Node, axis: Axis, rows: Found) -> None:
    """A reshard along other axes keeps the rows of a value."""
    value = node.args[0]
    if isinstance(value, fx.Node) and axis not in reshard_of(node).axes:
        rows[node] = rows.get(producer(value)[0])


def _visit(node: fx.Node, axis: Axis, rows: Found) -> Iterator[str]:
    """Note the rows of an op's results, and check what it reads."""
    rows[node] = rows_left(node, (axis,))
    slots = sharding_of(node).linear.get(axis)
    if slots is None or node.op == "placeholder":
        return
    operands = Call(node).operands
    read = {rows.get(producer(operands[slot])[0]) for slot in slots}
    (kept,) = read if len(read) == 1 else (None,)
    if rows[node] is not None:
        if kept != rows[node] or not _reads_rows(node, slots):
            yield f"{node}: over `{axis}` it reads rows of groups that are elsewhere"
    elif kept is not None and keeps_zeros(node, slots, kept.dims):
        rows[node] = kept
    elif slots not in sharding_of(node).rule.linear:
        yield f"{node}: over `{axis}` it passes on partial sums of {set(slots)}, not linear in them"


def _reads_rows(node: fx.Node, slots: frozenset[int]) -> bool:
    """Whether the operands are those whose rows a product by groups reads one by one."""
    call = Call(node)
    return {call.slots[slot].name for slot in slots} == {"x"}
