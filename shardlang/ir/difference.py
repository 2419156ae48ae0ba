"""Whether two graphs are the same, and the first thing in which they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import NodeInfo, info
from shardlang.ir.rule import Sharding
from shardlang.ir.text import results_in

ORIGINS = frozenset({"module", "source", "reader"})
"""Where a node comes from: compared only if asked for."""

UNSAID = frozenset({"leaf"})
"""What the leaves of the graph say."""

LOCAL = frozenset({"sharding"})
"""What a program does not say: local arguments fit no rule."""

Signature = object


def difference(
    left: ShardGraph, right: ShardGraph, *, local: bool = False, long: bool = False
) -> str | None:
    """The first difference between two graphs; None where they are the same.

    Args:
        local: whether they are localized: programs, whose ops have no rules to compare.
        long: whether modules, source lines, strides and reasons are compared too.
    """
    skipped = UNSAID | (frozenset() if long else ORIGINS) | (LOCAL if local else frozenset())
    return next(differences(left, right, skipped, long), None)


def differences(
    left: ShardGraph, right: ShardGraph, skipped: frozenset[str], long: bool
) -> Iterator[str]:
    """All differences, in the order of the text."""
    for name in ("mesh", "data_axes", "fast_random", "loss"):
        yield from _unlike(name, getattr(left, name), getattr(right, name))
    yield from _unlike("nodes", _names(left), _names(right))
    for mine, yours in zip(left.leaves, right.leaves, strict=False):
        yield from _unlike(f"leaf `{mine.name}`", replace(mine, layout=yours.layout), yours)
    for one, other in zip(left.graph.nodes, right.graph.nodes, strict=False):
        yield from node_differences(one, other, skipped, long)
    yield from _unlike("results", _results(left, skipped), _results(right, skipped))
    for name in ("checks", "draw_orders", *(("layouts", "strategies") if long else ())):
        yield from _unlike(name, getattr(left.info, name), getattr(right.info, name))
    yield from _unlike("refusals", _refusals(left), _refusals(right))


def _unlike(what: str, left: object, right: object) -> Iterator[str]:
    if left != right:
        yield f"{what}: {left} and {right}"


def _names(graph: ShardGraph) -> list[str]:
    return [node.name for node in graph.graph.nodes]


def _results(graph: ShardGraph, skipped: frozenset[str]) -> list[tuple[str, str, str]]:
    pairs = results_in(graph, local=skipped >= LOCAL)
    return [(result.name, result.kind, str(node)) for result, node in pairs]


def _refusals(graph: ShardGraph) -> list[tuple[str, str, str]]:
    return [(found.code, found.message, found.help) for found in graph.info.refusals]


def node_differences(
    left: fx.Node, right: fx.Node, skipped: frozenset[str], long: bool
) -> Iterator[str]:
    """The differences of two nodes."""
    if left.op == "output":
        return
    if left.op != "placeholder":
        yield from _unlike(f"`{left}` is made by", left.target, right.target)
    yield from _unlike(f"`{left}` reads", signature(left.args), signature(right.args))
    yield from _unlike(f"`{left}` reads", signature(left.kwargs), signature(right.kwargs))
    mine, yours = info(left), info(right)
    for field in fields(NodeInfo):
        if field.name not in skipped:
            one, other = getattr(mine, field.name), getattr(yours, field.name)
            what = f"`{left}`, {field.name}"
            yield from _unlike(what, signature(one, long), signature(other, long))


def signature(value: object, long: bool = False) -> Signature:
    """A value of a record or a call, so that two are equal where they say the same."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, torch.Tensor):
        return _tensor(value, long)
    if isinstance(value, (list, tuple)):
        return [signature(item, long) for item in value]
    if isinstance(value, dict):
        return {key: signature(item, long) for key, item in value.items()}
    if isinstance(value, Sharding):
        return _sharding(value, long)
    return repr(value) if isinstance(value, (bool, int, float)) else value


def _tensor(value: torch.Tensor, long: bool) -> Signature:
    strides = value.stride() if long and not value.is_contiguous() else None
    return str(value.dtype), tuple(value.shape), strides


def _sharding(value: Sharding, long: bool) -> Signature:
    reasons = (value.origins, value.closed) if long else None
    return value.rule, value.factors, value.linear, reasons
