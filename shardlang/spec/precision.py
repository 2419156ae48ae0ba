"""The resolver of `precision`."""

from __future__ import annotations

from dataclasses import replace

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error
from shardlang.ir.precision import LARGEST_SCALE
from shardlang.spec.draft import Draft
from shardlang.spec.scope import Scope
from shardlang.spec.types import LossScaleDecl, TypeDecl

_TYPES: dict[t.TypedWhat, tuple[str, tuple[str, ...]]] = {
    "compute": ("a model computes in bf16 or f16", ("bf16", "f16")),
    "master": ("master weights are f32", ("f32",)),
    "reduce": ("gradients are reduced in f32, or in the type of `compute`", ("f32", "bf16", "f16")),
}
"""What each key may state."""

DYNAMIC = "dynamic"


def resolve_precision(node: t.Precision, draft: Draft) -> None:
    """Note the types that are stated, and the factor of the loss."""
    for item in node.items:
        if isinstance(item, t.LossScale):
            _loss_scale(item, draft)
        else:
            _type(item, draft)


def check_reduce(draft: Draft) -> None:
    """Refuse a reduction in a narrower type than the model computes in."""
    reduce, compute = draft.precision.reduce, draft.precision.compute
    if reduce is None or reduce.dtype == "f32" or (compute and compute.dtype == reduce.dtype):
        return
    message = f"gradients are reduced in f32, or in the type of `compute`, not {reduce.dtype}"
    draft.scope.report(error("SH0243", message, reduce.span, help="write `reduce = f32`"))


def _type(item: t.Typed, draft: Draft) -> None:
    draft.state(f"precision {item.what}", "", item.span)
    words, types = _TYPES[item.what]
    if item.dtype.text not in types:
        help = f"write `{item.what} = {types[0]}`"
        message = f"{words}, not {item.dtype.text}"
        draft.scope.report(error("SH0243", message, item.dtype.span, help=help))
        return
    stated = TypeDecl(item.dtype.text, item.span)
    if item.what == "compute":
        draft.precision = replace(draft.precision, compute=stated)
    elif item.what == "master":
        draft.precision = replace(draft.precision, master=stated)
    else:
        draft.precision = replace(draft.precision, reduce=stated)


def _loss_scale(item: t.LossScale, draft: Draft) -> None:
    draft.state("precision loss_scale", "", item.span)
    if isinstance(item.value, t.Ident) and item.value.text == DYNAMIC:
        draft.precision = replace(draft.precision, loss_scale=LossScaleDecl(None, item.span))
        return
    factor = _factor(item, draft.scope)
    if factor is not None:
        draft.precision = replace(draft.precision, loss_scale=LossScaleDecl(factor, item.span))


def _factor(item: t.LossScale, scope: Scope) -> float | None:
    value = scope.scalar(item.value)
    if value is None:
        return None
    if not isinstance(value, (str, bool)) and 0 < value <= LARGEST_SCALE:
        return float(value)
    message = f"a loss is scaled by a number above 0 that f32 holds, not by {value}"
    help = "write `loss_scale = dynamic`, or a power of 2 such as `65536`"
    scope.report(error("SH0243", message, item.value.span, help=help))
    return None
