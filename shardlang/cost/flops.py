"""The floating-point operations of the calls of a step, as the rules of their ops count them."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.cost.effects import Held, TensorType, Value
from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import tree_map_only
from shardlang.ir.node import NodeInfo, set_info
from shardlang.ir.node import Value as NodeValue
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import Operand, record
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call
from shardlang.rules.conv import products_again
from shardlang.rules.registry import find
from shardlang.rules.schema import Operator


def types_in(value: Value) -> list[TensorType]:
    """The types of the tensors of a value."""
    if isinstance(value, Held):
        return [value.type] if isinstance(value.type, TensorType) else []
    return [found for one in value or () for found in types_in(one)]


def flops_of(node: fx.Node, types: tuple[TensorType, ...], made: Value) -> int:
    """The operations of a call on shards, as the rule of its op counts them.

    Args:
        types: of the nodes that it reads, each once, in order.
    """
    target, args, kwargs = _called(node)
    again = products_again(target, args)
    if again is None and not _has_products(target):
        return 0
    edit, read = Rewriter(fx.Graph()), _read(node, types)
    placed = {x: _placed(edit.graph, one) for x, one in read.items()}
    if again is not None:
        forward, given, times = again
        given, _ = tree_map_only((fx.Node, Operand), placed.__getitem__, (given, {}))
        result = args[0]
        assert isinstance(result, fx.Node | Operand), (
            "its gradient is what the backward reads first"
        )
        return times * _counted(edit, forward, given, {}, _shape_of(read[result]))
    args, kwargs = tree_map_only((fx.Node, Operand), placed.__getitem__, (args, kwargs))
    results = [_shape_of(one) for one in types_in(made)]
    value = results[0] if isinstance(made, Held) or target is not node.target else results
    return _counted(edit, target, args, kwargs, value)


def _read(node: fx.Node, types: tuple[TensorType, ...]) -> dict[fx.Node | Operand, TensorType]:
    """The types of what stands in the arguments of the op that a node calls, or records."""
    known: dict[fx.Node | Operand, TensorType] = {}
    known.update(zip(node.all_input_nodes, types, strict=True))
    if node.target is record:
        operands = node.args[3]
        assert isinstance(operands, (list, tuple)), "a record lists its operands"
        known.update((Operand(i), known[x]) for i, x in enumerate(operands))
    return known


def _has_products(target: Operator) -> bool:
    rule = find(target)
    return rule is not None and (rule.flops is not None or rule.kind is OpKind.PRODUCT)


def _counted(edit: Rewriter, target: Operator, args: Args, kwargs: Kwargs, value: NodeValue) -> int:
    """The operations of a call that gives a value."""
    rule = find(target)
    assert rule is not None, f"{target} has products"
    return rule.bind(Call(edit.add(target, args, kwargs, record=NodeInfo(value)))).flops()


def _called(node: fx.Node) -> tuple[Operator, Args, Kwargs]:
    """The op that a node calls, or records."""
    if node.target is not record:
        assert callable(node.target)
        return node.target, node.args, node.kwargs
    target, args, kwargs = node.args[:3]
    assert callable(target) and isinstance(args, tuple) and isinstance(kwargs, dict)
    return target, args, kwargs


def _placed(graph: fx.Graph, of: TensorType) -> fx.Node:
    made = graph.placeholder("operand")
    set_info(made, NodeInfo(_shape_of(of)))
    return made


def _shape_of(one: TensorType) -> torch.Tensor:
    return torch.empty(one.shape, dtype=one.dtype, device="meta")
