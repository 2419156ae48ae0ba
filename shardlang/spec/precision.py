"""The resolver of `precision`."""

from __future__ import annotations

from dataclasses import replace

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, error
from shardlang.spec.draft import Draft
from shardlang.spec.types import TypeDecl

_WHAT = {
    "master": "master weights are f32",
    "reduce": "gradients are reduced in f32",
}
"""What each key may state."""


def resolve_precision(node: t.Precision, draft: Draft) -> None:
    """Note the types that are stated."""
    for item in node.items:
        draft.state(f"precision {item.what}", "", item.span)
        if item.dtype.text != "f32":
            draft.scope.report(_refused(item))
            continue
        stated = TypeDecl(item.dtype.text, item.span)
        if item.what == "master":
            draft.precision = replace(draft.precision, master=stated)
        else:
            draft.precision = replace(draft.precision, reduce=stated)


def _refused(item: t.Typed) -> Diagnostic:
    message = f"{_WHAT[item.what]}, not {item.dtype.text}"
    return error("SH0243", message, item.dtype.span, help=f"write `{item.what} = f32`")
