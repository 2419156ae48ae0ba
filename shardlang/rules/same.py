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
"""A copy is made where a tensor of its own is asked for."""

OURS = "shardlang.rules"
"""Where the functions are that stand in the place of ops."""


@dataclass(slots=True)
class Numbers:
    """The numbers of the values of a graph.

    Attributes:
        of: every value's number.
        same: the calls of each number, in order; detaches are not among them.
        shape: of a reduction, the number that it shares with those that differ in `keepdim` alone.
        shapes: the reductions of each such number, in order.
    """

    of: dict[fx.Node, int] = field(default_factory=dict)
    same: dict[int, list[fx.Node]] = field(default_factory=dict)
    shape: dict[fx.Node, Hashable] = field(default_factory=dict)
    shapes: dict[Hashable, list[fx.Node]] = field(default_factory=dict)

    @staticmethod
    def of_graph(graph: fx.Graph) -> Numbers:
        """Number all values."""
        made, known = Numbers(), dict[Hashable, int]()
        for node in graph.nodes:
            if is_transparent(node):
                made.of[node] = made.of[node.all_input_nodes[0]]
                continue
            key = made._key(node)
            number = made.of[node] = known.setdefault(key, len(known))
            if key is not node:
                made.same.setdefault(number, []).append(node)
        return made

    def _key(self, node: fx.Node) -> Hashable:
        """What two calls that compute the same have in common; a node that is like no other."""
        if is_item(node):
            return self._text(node.args)
        if not is_pure(node):
            return node
        split = split_of(info(node).sharding)
        given = dict(Call(node).arguments)
        key = node.target, split, self._text(tuple(given.items()))
        if "keepdim" in given and not has_several(node):
            del given["keepdim"]
            shape = node.target, split, self._text(tuple(given.items()))
            self.shape[node] = shape
            self.shapes.setdefault(shape, []).append(node)
        return key

    def _text(self, value: object) -> Hashable:
        if isinstance(value, fx.Node):
            return self.of[value]
        if isinstance(value, (list, tuple)):
            return tuple(self._text(item) for item in value)
        return type(value), repr(value)


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
