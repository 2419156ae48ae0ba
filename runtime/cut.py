"""Pieces of whole inputs, marked with what they are pieces of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shardlang.ir.layout import Layout
from shardlang.ir.pieces import piece_of
from shardlang.runtime.groups import Groups
from shardlang.runtime.once import once
from shardlang.runtime.whole import whole

_MARK = "_shardlang_piece"


def cut(full: Tensor, layout: Layout, groups: Groups) -> Tensor:
    """This device's piece of a whole input, on its device and marked with its layout.

    The gradient of the piece comes back as that of the whole input, on every device: its backward
    is a gather.
    """
    moved = full.to(groups.device)
    if moved.requires_grad and torch.is_grad_enabled():
        piece = _Cut.apply(moved, layout, groups)  # type: ignore[no-untyped-call]
    else:
        piece = piece_of(moved.detach(), layout, groups.coord).contiguous()
    found: Tensor = piece.view(piece.shape) if piece is full else piece
    setattr(found, _MARK, _Mark(layout.unlabelled(), tuple(found.shape)))
    return found


def layout_of(piece: Tensor) -> Layout | None:
    """The layout that a piece was cut by; None for a tensor that `cut` has not made."""
    mark = getattr(piece, _MARK, None)
    return mark.layout if mark is not None and mark.shape == tuple(piece.shape) else None


@dataclass(frozen=True, slots=True)
class _Mark:
    layout: Layout
    shape: tuple[int, ...]


class _Cut(torch.autograd.Function):
    """Forward, the piece; backward, the whole gradient from those of all pieces."""

    @staticmethod
    def forward(ctx: Any, full: Tensor, layout: Layout, groups: Groups) -> Tensor:
        ctx.layout, ctx.groups = layout, groups
        return piece_of(full, layout, groups.coord).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> Any:
        return whole(grads[0], ctx.layout.unlabelled(), ctx.groups), None, None
