"""Write random calls in few forms: from the global generator, and not into their operand.

`generator=None` is the global generator, and so no argument at all. A draw in place becomes a copy
of numbers that are drawn as for the operand: in the order of its memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch.fx.node import Target

from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import draws_plain
from shardlang.passes.normalize.fx_edit import has_argument, is_op
from shardlang.rules.call import Call
from shardlang.rules.placed_draws import placed_flips, placed_flips_by, placed_normal
from shardlang.rules.schema import Operator

aten = torch.ops.aten
_NO_DERIVATIVE = [aten.randint_like]
_IN_PLACE: dict[Target, tuple[OpOverload, Operator, tuple[str, ...]]] = {
    aten.bernoulli_.float: (aten.bernoulli.p, placed_flips, ("p",)),
    aten.normal_.default: (aten.normal_functional.default, placed_normal, ("mean", "std")),
}


@dataclass(frozen=True, slots=True)
class PlainDraws:
    """Write random calls without a generator, and not into their operand."""

    name: str = "plain_draws"
    establishes: ClassVar[tuple[Invariant, ...]] = (draws_plain,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Rewrite the random ops."""
        plain_draws(graph.graph)
        return graph


def plain_draws(graph: fx.Graph) -> None:
    """Rewrite the random ops of `graph` in place, before writes are made functional.

    Afterwards no op takes a generator, `bernoulli_` and `normal_` are `copy_`, and what is drawn
    for carries no gradient where autograd has no derivative: a draw depends on its shape alone.
    """
    edit = Rewriter(graph)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if has_argument(node, "generator"):
            _without_generator(node)
        if node.target in _IN_PLACE:
            _copy(node, _drawn(edit, node))
        elif is_op(node, [aten.bernoulli_.Tensor]):
            _copy(node, _flipped(edit, node, tensor_of(_operand(node)).stride()))
        elif is_op(node, [aten.bernoulli.Tensor]):
            edit.replace(node, _flipped(edit, node, tensor_of(node).stride()))
        elif is_op(node, _NO_DERIVATIVE):
            node.args = (_cut(edit, _operand(node), node), *node.args[1:])


def _without_generator(node: fx.Node) -> None:
    """Call the overload that takes no generator, or leave the argument out."""
    call = Call(node)
    target = call.overload
    assert call["generator"] is None, "capture refuses generators"
    names = [a.name for a in target._schema.arguments]
    node.args = node.args[: names.index("generator")]
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "generator"}
    words = [word for word in target._overloadname.split("_") if word != "generator"]
    node.target = getattr(target.overloadpacket, "_".join(words) or "default")


def _operand(node: fx.Node) -> fx.Node:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def _copy(node: fx.Node, drawn: fx.Node) -> None:
    """Turn a draw into its operand into a copy."""
    node.target, node.args, node.kwargs = aten.copy_.default, (node.args[0], drawn), {}


def _cut(edit: Rewriter, operand: fx.Node, at: fx.Node) -> fx.Node:
    return edit.call(aten.detach.default, operand, like=at)


def _drawn(edit: Rewriter, node: fx.Node) -> fx.Node:
    """The numbers that a call draws into its operand."""
    dense, placed, names = _IN_PLACE[node.target]
    operand, given = _operand(node), [Call(node)[name] for name in names]
    cut = _cut(edit, operand, node)
    if tensor_of(operand).is_contiguous():
        return edit.call(dense, cut, *given, like=node)
    return edit.call(placed, cut, list(tensor_of(operand).stride()), *given, like=node)


def _flipped(edit: Rewriter, node: fx.Node, steps: tuple[int, ...]) -> fx.Node:
    """Zeros and ones by a tensor of probabilities, drawn into a tensor of the given steps."""
    chance = _cut(edit, Call(node).operand("p"), node)
    size, dtype = list(tensor_of(_operand(node)).shape), tensor_of(_operand(node)).dtype
    each = edit.call(aten.expand.default, chance, size, like=node)
    return edit.call(placed_flips_by, each, list(steps), dtype, like=node)
