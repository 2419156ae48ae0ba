"""The resolver of `cluster`."""

from __future__ import annotations

import math

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.spec.draft import Draft
from shardlang.spec.scope import Scope
from shardlang.spec.types import PeakDecl

PEAK_TYPES = ("f64", "f32", "f16", "bf16")
"""The types in which products are made of which a peak can be stated."""


def resolve_cluster(node: t.Cluster, draft: Draft) -> None:
    """Note the peaks of a device."""
    for item in node.items:
        draft.state(f"peak {item.dtype.text}", "", item.span)
        dtype, value = _dtype(item, draft.scope), _flops_per_s(item, draft.scope)
        if dtype is not None and value is not None:
            draft.peaks[dtype] = PeakDecl(dtype, value, item.span)


def _dtype(item: t.Peak, scope: Scope) -> str | None:
    if item.dtype.text in PEAK_TYPES:
        return item.dtype.text
    near = nearest(item.dtype.text, PEAK_TYPES)
    known = f"the types are {join_words(quote(PEAK_TYPES), 'and')}"
    message = f"`{item.dtype.text}` is no type that products are made in"
    help = f"did you mean `{near[0]}`" if near else known
    scope.report(error("SH0270", message, item.dtype.span, help=help))
    return None


def _flops_per_s(item: t.Peak, scope: Scope) -> float | None:
    value = scope.scalar(item.value)
    if value is None:
        return None
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not isinstance(item.value, t.Size)
        and 0 < value < math.inf
    ):
        return float(value)
    message = f"a peak is a number of operations a second, above 0, not {_shown(item, value)}"
    help = f"write it as `peak {item.dtype.text} = 989e12`"
    scope.report(error("SH0270", message, item.value.span, help=help))
    return None


def _shown(item: t.Peak, value: object) -> str:
    """A value as it is written."""
    if isinstance(item.value, t.Size):
        return f"{item.value.count}{item.value.unit}"
    return f"`{value}`"
