"""Checks on data in the model's code, which a trace cannot decide: they are taken to hold.

`assert`, `torch._check`, and an `if` that only raises or warns give no value. Where one needs the
value of a tensor, which is not known while the model is traced, the program leaves it out.
"""

from __future__ import annotations

import contextlib
import dis
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar
from unittest import mock

import torch

from shardlang.capture.check_syntax import Place, passing_value
from shardlang.capture.errors import ModelLine, is_model_file
from shardlang.capture.state import Remark

_ConditionT = TypeVar("_ConditionT")
_CHECKERS = ("/torch/distributions/", "/torch/__init__.py")
"""Parts of torch in which checks of the model's values stand."""


@contextlib.contextmanager
def checks_hold() -> Iterator[list[str]]:
    """Let checks on data pass inside the body. Yields their lines, as they are met."""
    met: list[str] = []
    with contextlib.ExitStack() as stack:
        of_tensor = _deciding(torch._C.TensorBase.__bool__, met)
        of_symbol = _deciding(torch.SymBool.__bool__, met)
        stack.enter_context(mock.patch.object(torch.Tensor, "__bool__", of_tensor))
        stack.enter_context(mock.patch.object(torch.SymBool, "__bool__", of_symbol))
        yield met


def _deciding(
    decide: Callable[[_ConditionT], bool], met: list[str]
) -> Callable[[_ConditionT], bool]:
    def value_of(condition: _ConditionT) -> bool:
        try:
            return decide(condition)
        except Exception:
            frame = sys._getframe(1)
            assumed = _assumed(frame)
            if assumed is None:
                raise
            met.append(_line(frame))
            return assumed

    return value_of


def _assumed(frame: FrameType) -> bool | None:
    """The value with which the check in a frame passes; None if it is not a check."""
    path = frame.f_code.co_filename
    if not is_model_file(path) and not any(part in path for part in _CHECKERS):
        return None
    return passing_value(path, _place(frame))


def _place(frame: FrameType) -> Place:
    """Where the expression stands whose truth a frame asks for.

    A jump stands at its whole statement; what it looks at is computed just before.
    """
    code, at = frame.f_code, frame.f_lasti
    jumps = "JUMP" in dis.opname[code.co_code[at]]
    return Place(*list(code.co_positions())[at // 2 - jumps])


def _line(frame: FrameType | None) -> str:
    """The innermost line of the model's own code."""
    while frame is not None and not is_model_file(frame.f_code.co_filename):
        frame = frame.f_back
    return ModelLine.of(frame.f_code.co_filename, frame.f_lineno) if frame else ""


def left_out(lines: list[str]) -> Remark:
    """The note that the program has no check at some lines of the model."""
    others = len(set(lines)) - 1
    more = f", and {others} more," if others else ""
    return Remark(
        "SH0362",
        f"this check{more} depends on the values of tensors: the program leaves it out",
        "the model itself still checks; `verify` runs it on the inputs of the proof",
        lines[0],
        severity="note",
    )
