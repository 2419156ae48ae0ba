"""Where in the model's code a traced operator comes from."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from shardlang.capture.errors import ModelLine, is_model_file
from shardlang.ir.compat import STACK_FILTER, STACK_SOURCE

_FRAME = re.compile(r'File "(.+)", line (\d+)')
_ENTRY = str(Path(__file__).with_name("trace.py"))


@contextlib.contextmanager
def full_stacks() -> Iterator[None]:
    """Let tracing record every frame of model code, not those called `forward` alone."""
    with contextlib.ExitStack() as patches:
        for (owner, name), ours in ((STACK_SOURCE, _ModelStack), (STACK_FILTER, _all_frames)):
            if hasattr(owner, name):
                patches.enter_context(mock.patch.object(owner, name, ours))
        yield


class _ModelStack:
    """The stack of model code inside the traced call, in place of the stack of the process.

    Most frames are torch's own, and there are a hundred of them under every operator: none of
    these is looked at further than its file.
    """

    def __init__(self, frames: traceback.StackSummary) -> None:
        self._frames = frames

    @classmethod
    def extract(cls) -> _ModelStack:
        """The stack of the caller."""
        found, frame = list[traceback.FrameSummary](), sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename != _ENTRY:
            code = frame.f_code
            if is_model_file(code.co_filename):
                found.append(traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        inside = found if frame.f_code.co_filename == _ENTRY else []
        return cls(traceback.StackSummary.from_list(inside[::-1]))

    def summary(self) -> traceback.StackSummary:
        """Its frames, the innermost last."""
        return self._frames


def _all_frames(tracer: object, frames: traceback.StackSummary) -> traceback.StackSummary:
    """The frames as they are: they are of model code already."""
    return frames


def model_frame(stack_trace: str) -> str:
    """`file.py:line` of the innermost line of model code in a recorded stack trace."""
    for path, line in reversed(_FRAME.findall(stack_trace)):
        if is_model_file(path):
            return ModelLine.of(path, line)
    return ""
