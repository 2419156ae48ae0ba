"""bind_rules: give every op its rule, unsharded, and join their dims; refuse ops without a rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

import shardlang.rules
from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import ShardError, ShardGraph, constrain, describe, is_item, is_reshard
from shardlang.ir.node import info, set_info, tensor_of
from shardlang.ir.rule import Rule, Sharding
from shardlang.ir.traits import Traits
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.structure import gradients_marked, rules_fit
from shardlang.passes.propagate.join_dims import join_dims
from shardlang.rules.call import Call, shape_of
from shardlang.rules.local_order import dense_steps
from shardlang.rules.notation import NotationError, bind
from shardlang.rules.registry import find

assert shardlang.rules


@dataclass(frozen=True, slots=True)
class BindRules:
    """Attach a `Sharding` with nothing split yet to every leaf and op."""

    name: str = "bind_rules"
    establishes: ClassVar[tuple[Invariant, ...]] = (rules_fit, gradients_marked)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Bind all rules.

        Raises:
            ShardError: an op has no rule, or its rule does not fit the call.
        """
        cache: dict[object, Rule] = {}
        for node in graph.graph.nodes:
            if not (node.op == "output" or is_item(node) or is_reshard(node)):
                bind_node(node, cache, graph.fast_random)
        mark_gradients(graph)
        graph.joined = join_dims(graph.graph)
        return graph


def bind_node(
    node: fx.Node, cache: dict[object, Rule] | None = None, fast_random: bool = False
) -> None:
    """Attach an unsharded `Sharding` to one node, and to a random one the order of its draws."""
    if node.op == "placeholder" or node.target is constrain:
        set_info(node, replace(info(node), sharding=Sharding.whole(_identity(node))))
        return
    call = Call(node)
    key = _key(call)
    found = cache.get(key) if cache is not None else None
    if found is None:
        found = _bind(call, fast_random)
        if cache is not None:
            cache[key] = found
    order = info(node).draws_in
    if order is None and found.random and call.operands:
        order = dense_steps(tensor_of(call.operands[0]))
    set_info(node, replace(info(node), sharding=Sharding.whole(found), draws_in=order))


def rule_of(node: fx.Node, fast_random: bool = False) -> Rule:
    """The rule of a leaf or a call.

    Raises:
        ShardError: an op has no rule, or its rule does not fit the call.
    """
    if node.op == "placeholder" or node.target is constrain:
        return _identity(node)
    return _bind(Call(node), fast_random)


def _identity(node: fx.Node) -> Rule:
    shape = shape_of(tensor_of(node))
    dims = " ".join(f"d{i}" for i in range(len(shape))) or "."
    if node.op == "placeholder":
        return bind(f"-> {dims}", [], [shape])
    rule = bind(f"{dims} -> {dims}", [shape], [shape], linear=[frozenset({0})])
    return replace(rule, traits=Traits(name="value", memory=(0,), moves=True))


def _bind(call: Call, fast_random: bool) -> Rule:
    declared = find(call.target)
    node = call.node
    if declared is None:
        message = f"no sharding rule for the op {describe(node)}"
        raise ShardError("SH0401", message, node=node, help=_remedy(call))
    try:
        return declared.bind(call, fast_random)
    except NotationError as error:
        raise ShardError(
            "SH0402",
            f"the rule of {describe(node)} does not fit: {error}",
            node=node,
            help="correct the rule if you declared it, or write the computation with other"
            " operators",
        ) from error


def _remedy(call: Call) -> str:
    """What to do about an op without a rule."""
    vals = [*call.results, *map(tensor_of, call.operands)]
    if any(v.layout is not torch.strided for v in vals if isinstance(v, torch.Tensor)):
        return "only dense tensors are split: use a dense tensor, with a mask for its zeros"
    if not isinstance(call.target, OpOverload):
        return "write the computation out with ordinary operators"
    op = f"torch.ops.{str(call.target).removesuffix('.default')}"
    return (
        f'say in the model\'s file how it may be split: `shardlang.rule({op}, "...")`;'
        " see docs/extending.md"
    )


def _key(call: Call) -> object:
    """What a rule may depend on: op, shapes, dtypes, order in memory and the other arguments."""
    vals = [tensor_of(n) for n in call.operands]
    operands = tuple((shape_of(v), v.dtype, v.is_contiguous()) for v in vals)
    names = tuple((slot.name, slot.index) for slot in call.slots)
    rest = tuple(
        (name, repr(value))
        for name, value in call.arguments.items()
        if not call.has(name) and _plain(value)
    )
    results = tuple((shape_of(v), v.dtype) for v in call.results)
    return call.target, operands, names, rest, results


def _plain(value: object) -> bool:
    return not (
        isinstance(value, (list, tuple)) and any(isinstance(item, fx.Node) for item in value)
    )


def mark_gradients(graph: ShardGraph) -> None:
    """Mark every value through which a gradient flows to a trainable parameter."""
    trainable = {node for node, leaf in graph.placeholders() if leaf.trainable}
    for node in graph.graph.nodes:
        flows = node in trainable or _carries(node)
        if flows != info(node).differentiable:
            set_info(node, replace(info(node), differentiable=flows))


def _carries(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    val = info(node).value
    floating = any(
        isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex())
        for v in (val if isinstance(val, (list, tuple)) else [val])
    )
    sharding = info(node).sharding
    detached = sharding is not None and sharding.rule.detached
    return (
        floating
        and not detached
        and any(info(source).differentiable for source in node.all_input_nodes)
    )
