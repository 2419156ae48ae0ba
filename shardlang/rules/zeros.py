"""Which ops map zeros to zeros: those that are linear, and those that are seen to do it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from shardlang.ir.compat import tree_leaves
from shardlang.ir.graph import sharding_of
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Rule
from shardlang.rules.call import Call
from shardlang.rules.registry import find


def maps_zeros(node: fx.Node, operands: frozenset[int]) -> bool:
    """Whether a bound op gives zeros wherever all of some operands are zero.

    It does if it is linear in operands among them. An op that makes every element from those at the
    same place is asked: it is run on one zero for each operand. Its derivative there must be
    finite too, or a zero gradient would come back as NaN.
    """
    rule = sharding_of(node).rule
    if any(linear <= operands for linear in rule.linear):
        return True
    everything = operands == frozenset(range(len(rule.operands)))
    return everything and bool(operands) and _by_element(node, rule) and _is_zero_at_zero(node)


def _by_element(node: fx.Node, rule: Rule) -> bool:
    """Whether every element of the results is made by itself, with the same arguments."""
    declared = find(node.target)
    factors = {name for name, _ in rule.sizes}
    split = not (rule.whole | rule.lowered) and factors == rule.outer and not rule.linked
    return split and not rule.random and declared is not None and declared.localize is None


def _is_zero_at_zero(node: fx.Node) -> bool:
    """Whether the op gives zero, with a finite derivative, where its operands are one zero each.

    An op that cannot be run so, or has no derivative, does not.
    """
    operands = dict.fromkeys(Call(node).operands)
    zeros = {operand: _zero(tensor_of(operand)) for operand in operands}
    args, kwargs = fx.map_arg((node.args, node.kwargs), zeros.__getitem__)
    assert callable(node.target)
    try:
        with torch.enable_grad():
            made = tree_leaves(node.target(*args, **kwargs))
            results = [x for x in made if isinstance(x, Tensor)]
            return all(not x.any() for x in results) and _has_slopes(results, list(zeros.values()))
    except (RuntimeError, NotImplementedError):
        return False


def _has_slopes(results: list[Tensor], operands: list[Tensor]) -> bool:
    """Whether all derivatives are finite."""
    flows = [x for x in results if x.requires_grad]
    sources = [x for x in operands if x.requires_grad]
    if not flows:
        return True
    ones = [torch.ones_like(x) for x in flows]
    slopes = torch.autograd.grad(flows, sources, ones, allow_unused=True)
    return all(slope is None or bool(slope.isfinite().all()) for slope in slopes)


def _zero(like: Tensor) -> Tensor:
    """One zero of the dtype and the number of dims of a fake tensor."""
    made = torch.zeros((1,) * like.dim(), dtype=like.dtype)
    return made.requires_grad_(like.is_floating_point() or like.is_complex())
