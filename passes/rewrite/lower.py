"""lower: rewrite ops that are split along a factor which they cannot be split along as they stand.

Softmax over a split dim becomes a maximum, an exponential, a sum and a quotient; a mean becomes a
sum and a product; cross-entropy over a split vocabulary a look-up of masked logits. The new ops are
ordinary: their rules, reshards and gradient types come from the same passes as all others.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.arguments import Args, Kwargs, tensors_in
from shardlang.ir.compat import FakeTensor, OpOverloadPacket, tree_map_only
from shardlang.ir.graph import (
    ShardError,
    ShardGraph,
    constrain,
    describe,
    is_item,
    result_layout,
    sharding_of,
)
from shardlang.ir.layout import Layout
from shardlang.ir.node import NodeInfo, Value, info, set_info
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.shardings import nothing_to_lower
from shardlang.passes.propagate.adopt import groups_of, merge, writable
from shardlang.passes.propagate.bind_rules import bind_node, mark_gradients
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.rules.call import Call
from shardlang.rules.registry import find
from shardlang.rules.same import COPY
from shardlang.rules.schema import Operator


@dataclass(frozen=True, slots=True)
class Lower:
    """Rewrite every op whose sharding needs it."""

    name: str = "lower"
    establishes: ClassVar[tuple[Invariant, ...]] = (nothing_to_lower,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Lower until no op needs it.

        Raises:
            ShardError: an op needs a lowering and has none.
        """
        graph.joined = None
        unread = {node for node in graph.graph.nodes if not node.users}
        again = True
        while again:
            again = False
            for node in list(graph.graph.nodes):
                if info(node).sharding is not None and sharding_of(node).needs_lowering():
                    lower_node(graph, node)
                    again = True
        _remove_unread(graph, unread)
        mark_gradients(graph)
        return graph


def _remove_unread(graph: ShardGraph, kept: set[fx.Node]) -> None:
    """Remove what nothing reads any more, since its readers read further back."""
    for node in reversed(graph.graph.nodes):
        gone = node.op == "call_function" and not node.users and node not in kept
        if gone and (is_item(node) or not sharding_of(node).rule.random):
            Rewriter(graph.graph).remove(node)


def lower_node(graph: ShardGraph, node: fx.Node) -> None:
    """Replace one op by its lowering."""
    call, sharding = Call(node), sharding_of(node)
    declared = find(call.target)
    if declared is None or declared.lower is None:
        split = [f for f in sharding.rule.lowered if sharding.factors[f].axes]
        raise ShardError(
            "SH0404",
            f"{describe(node)} has no program for a split along {', '.join(sorted(split))}",
            node=node,
            help="lay its operands out so that this dim stays whole, or mark it `!` in the rule",
        )
    emitter = Emitter(graph, node)
    operands = [emitter.place(n, sharding.operand(i)) for i, n in enumerate(call.operands)]
    target, args, kwargs = call.with_operands(operands)
    edit = Rewriter(graph.graph)
    twin = edit.add(target, args, kwargs, record=info(node), before=node)
    made = declared.lower(Call(twin), sharding, emitter)
    edit.remove(twin)
    if isinstance(made, fx.Node):
        edit.replace(node, emitter(COPY, made) if made in operands else made)
    else:
        edit.replace_items(node, made)


class Emitter:
    """Adds ops before a node, gives each its rule, and reads its factors off its operands."""

    def __init__(self, graph: ShardGraph, node: fx.Node) -> None:
        self.edit, self.node = Rewriter(graph.graph), node

    def place(self, value: fx.Node, layout: Layout) -> fx.Node:
        """The value in a layout."""
        if result_layout(value) == layout:
            return value
        made = self._add(constrain, (value,), {}, info(value).value)
        sharding = sharding_of(made)
        sharding.factors = {f"d{i}": dim for i, dim in enumerate(layout.dims)}
        sharding.linear = {axis: frozenset({0}) for axis in layout.partial}
        return made

    def __call__(self, target: Operator, *args: object, **kwargs: object) -> fx.Node:
        """Add one op.

        Raises:
            ShardError: the op has no rule.
        """
        if isinstance(target, OpOverloadPacket):
            target = target.default
        made = self._add(target, args, kwargs, fake_call(target, args, kwargs))
        if not is_item(made):
            read_forward(made, self.node)
        return made

    def _add(self, target: Operator, args: Args, kwargs: Kwargs, value: Value) -> fx.Node:
        known = info(self.node)
        record = NodeInfo(value, known.module, known.source)
        made = self.edit.add(target, args, kwargs, record=record, before=self.node)
        flows = any(info(n).differentiable for n in made.all_input_nodes)
        set_info(made, NodeInfo(value, known.module, known.source, differentiable=flows))
        if not is_item(made):
            bind_node(made)
        return made


def fake_call(target: Operator, args: Args, kwargs: Kwargs) -> Value:
    """What a call gives, on fake tensors."""
    values, keywords = tree_map_only(fx.Node, lambda n: info(n).value, (args, kwargs))
    found = (t for t in tensors_in((values, keywords)) if isinstance(t, FakeTensor))
    mode = next((t.fake_mode for t in found), nullcontext())
    with torch.no_grad(), mode:
        made = target(*values, **keywords)
    assert isinstance(made, (torch.Tensor, list, tuple)), f"{target} gives {made}"
    return made


def read_forward(node: fx.Node, origin: fx.Node) -> None:
    """Split an emitted op the way its operands are split: inner factors too."""
    sharding = sharding_of(node)
    for index, operand in enumerate(operands_of(node)):
        layout = result_layout(operand)
        if not layout.sharded:
            continue
        found = sharding.read_operand(index, layout)
        for names in groups_of(sharding.rule, found):
            if any(name in sharding.rule.whole for name in names):
                continue
            merged = {
                n: merge(sharding, n, found[n], frozenset(found[n].axes), names) for n in names
            }
            news = {n: dim for n, dim in merged.items() if dim is not None}
            if len(news) < len(names):
                continue
            before = dict(sharding.factors)
            sharding.factors.update(news)
            if not writable(sharding):
                sharding.factors = before
    for axis in sharding.axes():
        sharding.origins.setdefault(axis, Origin(Reason.LOWERED, origin.name))
