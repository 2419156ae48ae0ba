"""Where in the model's code a traced operator comes from."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from shardlang.capture.errors import ModelLine, is_model_file
from shardlang.ir.compat import STACK_FILTER

_FRAME = re.compile(r'File "(.+)", line (\d+)')
_ENTRY = str(Path(__file__).with_name("trace.py"))


@contextlib.contextmanager
def full_stacks() -> Iterator[None]:
    """Let tracing record every frame of model code, not those called `forward` alone."""
    owner, name = STACK_FILTER
    if not hasattr(owner, name):
        yield
        return
    with mock.patch.object(owner, name, _model_frames):
        yield


def _model_frames(tracer: object, frames: traceback.StackSummary) -> traceback.StackSummary:
    """The frames of model code inside the traced call."""
    entered = [i for i, frame in enumerate(frames) if frame.filename == _ENTRY]
    inside = frames[entered[-1] + 1 :] if entered else []
    return traceback.StackSummary.from_list([f for f in inside if is_model_file(f.filename)])


def model_frame(stack_trace: str) -> str:
    """`file.py:line` of the innermost line of model code in a recorded stack trace."""
    for path, line in reversed(_FRAME.findall(stack_trace)):
        if is_model_file(path):
            return ModelLine.of(path, line)
    return ""
