"""Products of rows with the matrix of each row's group, as one op that traces and has a gradient.

A group that is none of the matrices gives zeros, be it negative or too large: such rows belong to a
matrix on another device, or to none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from shardlang.rules.local_shape import Place, local_positions


def _groups(groups: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """The rows of every group that has some."""
    known = torch.where(groups < 0, count, groups).clamp(max=count)
    order, sizes = known.argsort(stable=True), torch.bincount(known, minlength=count + 1).tolist()
    for number, rows in enumerate(torch.split(order, sizes)[:count]):
        if len(rows):
            yield number, rows


@torch.library.custom_op("shardlang::grouped_mm", mutates_args=())
def grouped_mm(x: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
    """`out[s] = x[s] @ weight[groups[s]]`, by `s i, e i o, s -> s o`."""
    made = x.new_zeros(x.shape[0], weight.shape[2])
    for number, rows in _groups(groups, weight.shape[0]):
        made[rows] = x[rows] @ weight[number]
    return made


@grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("shardlang::grouped_outer", mutates_args=())
def grouped_outer(x: Tensor, y: Tensor, groups: Tensor, count: int) -> Tensor:
    """The sum over the rows of each group of `x[s] y[s]`, by `s i, s o, s -> e i o`."""
    made = x.new_zeros(count, x.shape[1], y.shape[1])
    for number, rows in _groups(groups, count):
        made[number] = x[rows].T @ y[rows]
    return made


@grouped_outer.register_fake
def _(x: Tensor, y: Tensor, groups: Tensor, count: int) -> Tensor:
    return x.new_empty(count, x.shape[1], y.shape[1])


class _Saved(Protocol):
    """What autograd keeps from the forward for the backward."""

    @property
    def saved_tensors(self) -> tuple[Tensor, Tensor, Tensor]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...


def _save(ctx: _Saved, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: _Saved, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, groups = ctx.saved_tensors
    onward = grouped_mm(grad, weight.transpose(1, 2), groups)
    return onward, grouped_outer(x, grad, groups, weight.shape[0]), None


grouped_mm.register_autograd(_backward, setup_context=_save)


def grouped_mm_here(x: Tensor, weight: Tensor, groups: Tensor, at: Place, total: int) -> Tensor:
    """`grouped_mm` with this device's matrices alone, zeros in the rows of all others."""
    count = weight.shape[0]
    known = (groups >= 0) & (groups < total)
    found = local_positions(torch.where(known, groups, 0), at, count, total)
    held = known & (found >= 0)
    made: Tensor = grouped_mm(x, weight, torch.where(held, found, count))
    return made
