"""How a value is put back into the tensor that a view operator took it from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.node import tensor_of, tensors_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.normalize.fx_edit import is_op
from shardlang.rules.call import Call

aten = torch.ops.aten
PutBack = Callable[[Rewriter, fx.Node, fx.Node, fx.Node, fx.Node], fx.Node | None]


def put_back(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node | None:
    """`parent` with the part that `view` shows replaced by `value`; None if that has no form."""
    if view.target is operator.getitem:
        return _put_item(edit, view, parent, value, at)
    for operators, rule in _RULES:
        if is_op(view, operators):
            return rule(edit, view, parent, value, at)
    return None


def _same(edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    return value


def _expand(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node | None:
    """What is not repeated is as it was."""
    return value if tensor_of(view).shape == tensor_of(parent).shape else None


def _reshape(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    return edit.call(aten.reshape.default, value, list(tensor_of(parent).shape), like=at)


def _transpose(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    return edit.call(view.target, value, *view.args[1:], like=at)


def _permute(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    dims = Call(view).integers("dims")
    inverse = sorted(range(len(dims)), key=lambda i: dims[i] % len(dims))
    return edit.call(aten.permute.default, value, inverse, like=at)


def _view_as_real(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    parts = [edit.call(aten.select.int, value, -1, i, like=at) for i in (0, 1)]
    return edit.call(aten.complex.default, *parts, like=at)


def _view_as_complex(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    return edit.call(aten.view_as_real.default, value, like=at)


def _part(edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    """Put back the real or the imaginary part."""
    if not tensor_of(parent).is_complex():
        return value
    if is_op(view, [aten.real]):
        return edit.call(
            aten.complex.default, value, edit.call(aten.imag.default, parent, like=at), like=at
        )
    real = edit.call(aten.real.default, parent, like=at)
    return edit.call(aten.complex.default, real, value, like=at)


def _conj(edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    return edit.call(aten.conj_physical.default, value, like=at)


def _movedim(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node:
    call = Call(view)
    return edit.call(view.target, value, call["destination"], call["source"], like=at)


def _narrow(edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
    call = Call(view)
    start = call.integer("start")
    given = call["dim"], start, start + call.integer("length")
    return _scattered(edit, aten.slice_scatter.default, parent, value, given, at)


def _scatter(target: OpOverload) -> PutBack:
    """A rule for views whose scatter operator takes the same arguments."""

    def rule(
        edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
    ) -> fx.Node:
        call, rank = Call(view), tensor_of(parent).dim()
        given = [
            call.dim(name, rank) if name.startswith("dim") else call[name]
            for name in call.names[1:]
        ]
        return _scattered(edit, target, parent, value, given, at)

    return rule


def _scattered(
    edit: Rewriter,
    target: OpOverload,
    parent: fx.Node,
    value: fx.Node,
    given: Sequence[object],
    at: fx.Node,
) -> fx.Node:
    """A scatter; that of complex numbers, which has no derivative, as one of pairs."""
    if not tensor_of(parent).is_complex():
        return edit.call(target, parent, value, *given, like=at)
    pairs = [edit.call(aten.view_as_real.default, x, like=at) for x in (parent, value)]
    return edit.call(
        aten.view_as_complex.default, edit.call(target, *pairs, *given, like=at), like=at
    )


def _put_item(
    edit: Rewriter, view: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node
) -> fx.Node | None:
    """Put back one result of split, chunk or unbind."""
    split, index = view.args
    assert isinstance(split, fx.Node) and isinstance(index, int)
    dim = Call(split).dim("dim", tensor_of(parent).dim())
    if is_op(split, [aten.unbind]):
        return _scattered(edit, aten.select_scatter.default, parent, value, (dim, index), at)
    if not is_op(split, [aten.split, aten.split_with_sizes, aten.chunk]):
        return None
    sizes = [shard.shape[dim] for shard in tensors_of(split)]
    start = sum(sizes[:index])
    end = start + sizes[index]
    return _scattered(edit, aten.slice_scatter.default, parent, value, (dim, start, end), at)


_RULES: tuple[tuple[Sequence[object], PutBack], ...] = (
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
    ([aten.expand, aten.expand_as, aten.broadcast_to], _expand),
    ([aten.t, aten.transpose, aten.swapaxes, aten.swapdims, aten.mT], _transpose),
    ([aten.movedim], _movedim),
    ([aten.narrow], _narrow),
    ([aten.permute], _permute),
    ([aten.view_as_real], _view_as_real),
    ([aten.view_as_complex], _view_as_complex),
    ([aten.real, aten.imag], _part),
    ([aten._conj], _conj),
    ([aten.slice], _scatter(aten.slice_scatter.default)),
    ([aten.select], _scatter(aten.select_scatter.default)),
    ([aten.diagonal], _scatter(aten.diagonal_scatter.default)),
)
