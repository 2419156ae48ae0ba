"""The one exception that capture raises for the person."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

_TORCH_ROOT = str(Path(torch.__file__).parent)
_PACKAGE_ROOT = str(Path(__file__).absolute().parent.parent)

CODES: dict[str, str] = {
    "SH0350": "a model file or configuration cannot be read",
    "SH0351": "the build function is missing or unusable",
    "SH0352": "the model cannot be built",
    "SH0353": "an input does not match the model's forward",
    "SH0354": "the model branches on tensor data",
    "SH0355": "the model fails while it is traced",
    "SH0356": "a parameter has an unsupported kind",
    "SH0357": "an in-place update cannot be made functional",
    "SH0358": "the traced graph holds a construct that cannot be sharded",
    "SH0359": "a checkpoint does not fit the model",
    "SH0360": "a module's value does not exist or is ambiguous",
}


class CaptureError(ValueError):
    """A model that cannot be captured, with the place in its code where that shows.

    Attributes: `code` (a key of `CODES`), `message`, `help` (how to fix it, may be empty) and
    `source` (`file.py:line` in the model's own code, may be empty).
    """

    def __init__(self, code: str, message: str, *, help: str = "", source: str = "") -> None:
        super().__init__(f"{source}: {message}" if source else message)
        self.code = code
        self.message = message
        self.help = help
        self.source = source


def is_model_file(path: str) -> bool:
    """Whether a stack frame's file is the model's own code, neither torch's nor ours."""
    if path.startswith((_TORCH_ROOT, _PACKAGE_ROOT, "<")):
        return False
    return not any(part in path for part in ("/importlib/", "/huggingface_hub/"))


def model_line(error: BaseException) -> str:
    """`file.py:line` of the innermost frame of model code that `error` passed through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_model_file(frame.filename):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, and the next one if it only announces that."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text.rstrip(".")
