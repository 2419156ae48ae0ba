"""Which calls of a graph compute the same: global value numbering.

Two values have one number where the same op makes them, split in the same way, of operands with the
same numbers (Alpern, Wegman and Zadeck, 1988). A detach has the number of what it detaches.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import constrain, is_item, result_layout
from shardlang.ir.node import has_several, info
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call

DETACH = torch.ops.aten.detach.default
COPY = torch.ops.aten.clone.default
RESHAPE = torch.ops.aten.reshape.default
"""A copy is made where a tensor of its own is asked for."""

OURS = "shardlang.rules"
"""Where the functions are that stand in the place of ops."""


@dataclass(slots=True)
class Numbers:
    """The numbers of the values of a graph.

    Attributes:
        of: every value's number.
        same: of each number that several calls of one op on the same operands might have, those
            that have it, in order; detaches are not among them.
        shape: of such a reduction, what it shares with those that differ in `keepdim` alone.
        shapes: the reductions that share it, in order.
    """

    of: dict[fx.Node, int] = field(default_factory=dict)
    same: dict[int, list[fx.Node]] = field(default_factory=dict)
    shape: dict[fx.Node, Hashable] = field(default_factory=dict)
    shapes: dict[Hashable, list[fx.Node]] = field(default_factory=dict)
    _first: dict[Hashable, fx.Node] = field(default_factory=dict)
    _known: dict[Hashable, int] = field(default_factory=dict)

    @staticmethod
    def of_graph(graph: fx.Graph) -> Numbers:
        """Number all values."""
        made = Numbers()
        for node in graph.nodes:
            if is_transparent(node):
                made.of[node] = made.of[node.all_input_nodes[0]]
            elif is_item(node) or is_pure(node):
                made._enter(node)
            else:
                made.of[node] = len(made.of)
        return made

    def _enter(self, node: fx.Node) -> None:
        """Number a call; its arguments are looked at where another has its op and its operands."""
        rough = node.target, *(self.of[source] for source in node.all_input_nodes)
        first = self._first.setdefault(rough, node)
        if first is node:
            self.of[node] = len(self.of)
            return
        if self.of[first] not in self.same:
            self._compare(first, rough, self.of[first])
        self._compare(node, rough, len(self.of))

    def _compare(self, node: fx.Node, rough: Hashable, new: int) -> None:
        """Give a call the number of one that is the same, or a new one."""
        given = {"item": node.args[1]} if is_item(node) else arguments(Call(node))
        split = info(node).stage, split_of(info(node).sharding)
        number = self._known.setdefault((rough, split, self._text(given)), new)
        self.of[node] = number
        self.same.setdefault(number, []).append(node)
        if "keepdim" in given and not has_several(node):
            del given["keepdim"]
            shape = self.shape[node] = rough, split, self._text(given)
            self.shapes.setdefault(shape, []).append(node)

    def _text(self, value: object) -> Hashable:
        if isinstance(value, fx.Node):
            return self.of[value]
        if isinstance(value, dict):
            return tuple((name, self._text(item)) for name, item in value.items())
        if isinstance(value, (list, tuple)):
            return tuple(self._text(item) for item in value)
        return type(value), repr(value)


def arguments(call: Call) -> dict[str, object]:
    """The arguments of a call; the dims of a reduction are counted from the front."""
    found = dict(call.arguments)
    if "keepdim" in found and isinstance(found.get("dim"), (int, list, tuple)):
        found["dim"] = call.dims()
    return found


def split_of(sharding: Sharding | None) -> Hashable:
    """How a call is split, and in which notation of its rule."""
    if sharding is None:
        return None
    return tuple(sharding.factors.items()), tuple(sharding.linear.items()), sharding.rule.notation


def is_pure(node: fx.Node) -> bool:
    """Whether a call on tensors always gives the same: it draws nothing and states nothing."""
    record = info(node)
    if node.op != "call_function" or record.sharding is None or record.stated is not None:
        return False
    if record.sharding.rule.random or not node.all_input_nodes:
        return False
    target = node.target
    if isinstance(target, OpOverload):
        return target.namespace in ("aten", "prims") and target is not COPY
    return target is constrain or getattr(target, "__module__", "").startswith(OURS)


def is_transparent(node: fx.Node) -> bool:
    """Whether a node detaches a value and leaves it as it lies."""
    if node.target is not DETACH or info(node).sharding is None:
        return False
    return result_layout(node) == result_layout(node.all_input_nodes[0])
