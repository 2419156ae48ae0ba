"""`tensor.data` in the model's code, made visible to the trace.

Tracing does not see what `data` gives: it would be a constant. It is what `detach` gives, an alias
without a gradient, so that is traced in its place.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from types import GetSetDescriptorType
from unittest import mock

import torch
from torch import Tensor

from shardlang.capture.errors import CaptureError, is_model_file

_DATA: GetSetDescriptorType = inspect.getattr_static(torch.Tensor, "data")


@contextlib.contextmanager
def data_as_detach() -> Iterator[None]:
    """Let the model's code read `data` as `detach()` inside the body; assigning it is refused.

    Raises `CaptureError` SH0357 where the model assigns.
    """
    with mock.patch.object(torch.Tensor, "data", property(_read, _assign)):
        yield


def _read(tensor: Tensor) -> Tensor:
    if _asked_by_model():
        return tensor.detach()
    data: Tensor = _DATA.__get__(tensor)
    return data


def _assign(tensor: Tensor, value: Tensor) -> None:
    if not _asked_by_model():
        _DATA.__set__(tensor, value)
        return
    raise CaptureError(
        "SH0357",
        "the forward assigns the `data` of a tensor, which autograd and a trace do not see",
        help="compute a new tensor; change parameters in the training loop; keep state in a buffer",
    )


def _asked_by_model() -> bool:
    """Whether the attribute stands in the model's own code."""
    return is_model_file(sys._getframe(2).f_code.co_filename)
