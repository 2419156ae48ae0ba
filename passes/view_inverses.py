"""How a value is put back into the tensor that a view operator took it from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from shardlang.passes.fx_edit import Editor, argument, is_op, val

aten = torch.ops.aten
PutBack = Callable[[Editor, fx.Node, fx.Node, fx.Node, fx.Node], fx.Node]


def put_back(
    edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node | None:
    """`parent` with the part that `view` shows replaced by `value`; None if that has no form."""
    if view.target is operator.getitem:
        return _put_item(edit, view, parent, value, at)
    for operators, rule in _RULES:
        if is_op(view, operators):
            return rule(edit, view, parent, value, at)
    return None


def _same(edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    return value


def _reshape(edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    return edit.call(aten.reshape.default, value, list(val(parent).shape), like=at)


def _transpose(
    edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    if is_op(view, [aten.t]):
        return edit.call(aten.t.default, value, like=at)
    return edit.call(view.target, value, *view.args[1:], like=at)


def _permute(edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    dims = argument(view, "dims")
    inverse = sorted(range(len(dims)), key=lambda i: dims[i] % len(dims))
    return edit.call(aten.permute.default, value, inverse, like=at)


def _scatter(target: Any) -> PutBack:
    """A rule for views whose scatter operator takes the same arguments."""

    def rule(edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
        return edit.call(target, parent, value, *view.args[1:], like=at, **view.kwargs)

    return rule


def _put_item(
    edit: Editor, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node | None:
    """Put back one result of split, chunk or unbind."""
    split, index = view.args
    assert isinstance(split, fx.Node) and isinstance(index, int)
    dim = split.kwargs.get("dim", argument(split, "dim"))
    if is_op(split, [aten.unbind]):
        return edit.call(aten.select_scatter.default, parent, value, dim, index, like=at)
    if not is_op(split, [aten.split, aten.split_with_sizes, aten.chunk]):
        return None
    sizes = [piece.shape[dim] for piece in split.meta["val"]]
    start = sum(sizes[:index])
    end = start + sizes[index]
    return edit.call(aten.slice_scatter.default, parent, value, dim, start, end, like=at)


_RULES: tuple[tuple[list[Any], PutBack], ...] = (
    ([aten.alias, aten.detach, aten.to, aten.contiguous, aten.lift_fresh], _same),
    # switched off, they return what they are given
    ([aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout], _same),
    (
        [
            aten.view,
            aten.reshape,
            aten._unsafe_view,
            aten.unsqueeze,
            aten.squeeze,
            aten.flatten,
            aten.unflatten,
            aten.view_as,
            aten.reshape_as,
            aten._reshape_alias,
        ],
        _reshape,
    ),
    ([aten.t, aten.transpose], _transpose),
    ([aten.permute], _permute),
    ([aten.slice], _scatter(aten.slice_scatter.default)),
    ([aten.select], _scatter(aten.select_scatter.default)),
    ([aten.diagonal], _scatter(aten.diagonal_scatter.default)),
)
