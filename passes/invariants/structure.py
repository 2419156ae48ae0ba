"""What holds of every graph: complete records, rules that fit, gradients where they flow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from shardlang.ir.graph import constrain, is_item, read_by
from shardlang.ir.node import info, tensor_of, tensors_of
from shardlang.ir.rule import DimSpec, Sharding
from shardlang.passes.invariants.invariant import View, invariant, invariant_of_ops
from shardlang.rules.call import shape_of


@invariant
def records_complete(view: View) -> Iterator[str]:
    """Every node has its value, every placeholder its leaf, and every result its node."""
    view.graph.graph.lint()
    leaves = [leaf.node for leaf in view.graph.leaves]
    placeholders = [node.name for node in view.nodes if node.op == "placeholder"]
    if leaves != placeholders:
        yield f"the leaves are {leaves}, the placeholders {placeholders}"
    if len(view.graph.result_nodes) != len(view.graph.results):
        yield f"{len(view.graph.results)} results have {len(view.graph.result_nodes)} values"
    for node in view.nodes:
        if node.op != "output" and not tensors_of(node):
            yield f"{node} has no value"
        if is_item(node):
            yield from _item_fits(node)


def _item_fits(node: fx.Node) -> Iterator[str]:
    """The value of an item is the one that its source has there."""
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    several = info(source).value
    if not isinstance(several, (list, tuple)):
        yield f"{node} picks a result of `{source}`, which has one"
    elif _shape_at(several, index) != shape_of(tensor_of(node)):
        yield f"{node} is not the result {index} of `{source}`"


def _shape_at(several: Sequence[torch.Tensor | None], index: int) -> tuple[int, ...] | None:
    value = several[index]
    return None if value is None else shape_of(value)


@invariant_of_ops
def rules_fit(node: fx.Node, view: View) -> Iterator[str]:
    """Every leaf and op has a rule whose dims are those of its operands and results."""
    sharding = info(node).sharding
    if sharding is None:
        yield f"{node} has no rule"
        return
    sizes = {name: dim.size for name, dim in sharding.factors.items()}
    if sizes != dict(sharding.rule.sizes):
        yield f"{node}: its factors are {sizes}, its rule says {dict(sharding.rule.sizes)}"
        return
    yield from _operands_fit(node, sharding, view)
    yield from _results_fit(node, sharding)


def _operands_fit(node: fx.Node, sharding: Sharding, view: View) -> Iterator[str]:
    operands = view.operands(node)
    if len(operands) != len(sharding.rule.operands):
        yield f"{node} has {len(operands)} operands, its rule {len(sharding.rule.operands)}"
        return
    sizes = dict(sharding.rule.sizes)
    for index, operand in enumerate(operands):
        shape, wanted = shape_of(tensor_of(operand)), sharding.rule.operands[index].dims
        if shape != _shape(wanted, sizes):
            yield f"{node}: operand {index} is {shape}, its rule says {_shape(wanted, sizes)}"


def _results_fit(node: fx.Node, sharding: Sharding) -> Iterator[str]:
    results = tensors_of(node)
    if len(results) != len(sharding.rule.results):
        yield f"{node} has {len(results)} results, its rule {len(sharding.rule.results)}"
        return
    sizes = dict(sharding.rule.sizes)
    for index, result in enumerate(results):
        shape, given = tuple(result.shape), _shape(sharding.rule.results[index], sizes)
        if shape != given:
            yield f"{node}: result {index} is {shape}, its rule says {given}"


def _shape(dims: tuple[DimSpec, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a rule gives a tensor: blocks stand one after the other in a dim."""
    return tuple(sum(math.prod(sizes[f] for f in block) for block in dim) for dim in dims)


@invariant
def gradients_marked(view: View) -> Iterator[str]:
    """A gradient flows through a floating value that depends on a trainable leaf, and no other."""
    trainable = {node for node, leaf in view.graph.placeholders() if leaf.trainable}
    for node in view.nodes:
        if node.op == "output":
            continue
        marked, due = info(node).differentiable, node in trainable or _gradient_flows(node)
        if marked != due:
            is_, should = ("has", "should have none") if marked else ("has no", "should have one")
            yield f"{node} {is_} gradient, and {should}"


def _gradient_flows(node: fx.Node) -> bool:
    sharding = info(node).sharding
    if node.op == "placeholder" or (sharding is not None and sharding.rule.detached):
        return False
    floating = any(_is_floating(value) for value in tensors_of(node))
    return floating and any(info(source).differentiable for source in read_by(node))


def _is_floating(value: torch.Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


@invariant
def constraints_met(view: View) -> Iterator[str]:
    """No constraint is left: its reader has the stated layout already."""
    for node in view.ops:
        if node.target is constrain:
            yield f"{node} is still there"
