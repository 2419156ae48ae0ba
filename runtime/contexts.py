"""Contexts of torch around a call that a program would not follow."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from shardlang.ir.compat import inside_dual_level, under_transforms
from shardlang.runtime.errors import RunError


def refuse_contexts(kind: str) -> None:
    """Look for a context that the program does not know, on a device of this kind.

    Raises:
        RunError: SH0613.
    """
    if torch.is_autocast_enabled(kind):
        raise RunError(
            "SH0613",
            "the call runs under autocast, and the program was traced without it",
            help="leave the `autocast` of the loop; write it into the model's forward, or build the"
            " model in the lower precision",
        )
    if under_transforms():
        raise _transformed()


def refuse_tangents(tensors: Iterable[Tensor]) -> None:
    """Look for inputs and parameters that are differentiated forwards.

    Raises:
        RunError: SH0613.
    """
    if inside_dual_level() and any(map(_has_tangent, tensors)):
        raise _transformed()


def _transformed() -> RunError:
    return RunError(
        "SH0613",
        "the call runs under forward-mode differentiation or a transform of `torch.func`, and"
        " the program has a backward alone",
        help="use `loss.backward()` or `torch.autograd.grad`",
    )


def _has_tangent(tensor: Tensor) -> bool:
    return unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
