"""delay_reductions: a partial sum is reduced where it is smallest.

Behind an op that leaves a partial sum may stand linear ops that nobody else reads and that make it
smaller: a weighted sum over the experts of a token, a mean over a dim. The reduction moves behind
them if that saves bytes, the gradients of their other operands counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shardlang.cost.held import value_bytes
from shardlang.cost.ring import reduce_limit
from shardlang.ir.graph import ShardGraph, home, is_item, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import has_several, info
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.shardings import partials_pass
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.passes.rewrite.defer_reductions import is_free, pass_on


@dataclass(frozen=True, slots=True)
class DelayReductions:
    """Move reductions behind linear ops that make their tensor smaller."""

    name: str = "delay_reductions"
    establishes: ClassVar[tuple[Invariant, ...]] = (partials_pass,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Visit every op that leaves a partial sum."""
        for node in graph.graph.nodes:
            if info(node).sharding is not None and node.op == "call_function":
                for axis in graph.mesh.axes:
                    if not is_item(node) and axis in home_partial(node):
                        delay(node, axis)
        return graph


def home_partial(node: fx.Node) -> frozenset[Axis]:
    """Axes over which an op of one result leaves a partial sum."""
    if has_several(node):
        return frozenset()
    return home(node).partial


def delay(node: fx.Node, axis: Axis) -> None:
    """Pass one partial sum on to where it costs least to reduce."""
    taken: list[tuple[fx.Node, frozenset[int]]] = []
    best, length, extra, value = _reduce_bytes(node), 0, 0, node
    while (step := _next(value, axis)) is not None:
        taken.append(step)
        value, slots = step
        extra += sum(_gradient_bytes(o) for i, o in enumerate(operands_of(value)) if i not in slots)
        total = _reduce_bytes(value) + extra
        if total < best:
            best, length = total, len(taken)
    for one, slots in taken[:length]:
        pass_on(one, axis, slots)


def _next(value: fx.Node, axis: Axis) -> tuple[fx.Node, frozenset[int]] | None:
    """The only reader of a value, if it is linear in it, and the operands that the value is."""
    if len(value.users) != 1:
        return None
    (user,) = value.users
    if info(user).sharding is None or user.op != "call_function" or is_item(user):
        return None
    if has_several(user) or not is_free(user, axis):
        return None
    operands = operands_of(user)
    slots = frozenset(i for i, operand in enumerate(operands) if operand is value)
    whole = all(axis not in home(o).partial for i, o in enumerate(operands) if i not in slots)
    split = any(home(o).dim_of(axis) is not None for o in operands)
    if slots not in sharding_of(user).rule.linear or not whole or split:
        return None
    return user, slots


def _reduce_bytes(value: fx.Node) -> int:
    """Bytes of an all-reduce of a value over many devices."""
    return reduce_limit(value_bytes(value))


def _gradient_bytes(operand: fx.Node) -> int:
    """Bytes that the all-reduce of a whole operand's gradient moves, as the forward counts them."""
    return _reduce_bytes(operand) if info(operand).differentiable else 0
