"""The one exception that capture raises for the person."""

from __future__ import annotations

import difflib
import functools
import sysconfig
import traceback
from pathlib import Path

import torch

_TORCH_ROOT = str(Path(torch.__file__).parent)
_PACKAGE_ROOT = str(Path(__file__).absolute().parent.parent)
_PYTHON_ROOT = sysconfig.get_path("stdlib")
_INSTALLED = ("/site-packages/", "/dist-packages/")

CODES: dict[str, str] = {
    "SH0312": "an input may hold a number that an op does not take",
    "SH0350": "a model file or configuration cannot be read",
    "SH0351": "the build function is missing or unusable",
    "SH0352": "the model cannot be built",
    "SH0353": "an input does not match the model's forward",
    "SH0354": "the model's code depends on tensor data",
    "SH0355": "the model fails while it is traced",
    "SH0356": "a parameter has an unsupported kind",
    "SH0357": "an in-place update cannot be made functional",
    "SH0358": "the model holds a construct that cannot be traced or sharded",
    "SH0359": "a checkpoint does not fit the model",
    "SH0360": "a module's value does not exist or is ambiguous",
    "SH0361": "the forward keeps state that is not traced",
    "SH0362": "a check on data is left out",
}


class ModelLine(str):
    """`file.py:12`, a line of the model's code; `path` is the whole path of the file."""

    path: str

    def __new__(cls, text: str, path: str = "") -> ModelLine:
        made = super().__new__(cls, text)
        made.path = path
        return made

    @classmethod
    def of(cls, path: str, line: int | str | None) -> ModelLine:
        """The line of that number in a file."""
        return cls(f"{Path(path).name}:{line}", path)

    @property
    def number(self) -> int:
        """The line's number."""
        return int(self.rpartition(":")[2])


class CaptureError(ValueError):
    """A model that cannot be captured, with the place in its code where that shows.

    Attributes: `code` (a key of `CODES`), `message`, `help` (how to fix it, may be empty),
    `source` (`file.py:line` in the model's own code, may be empty) and `input` (the declared input
    that is at fault, or empty).
    """

    def __init__(
        self, code: str, message: str, *, help: str = "", source: str = "", input: str = ""
    ) -> None:
        super().__init__(f"{source}: {message}" if source else message)
        self.code = code
        self.message = message
        self.help = help
        self.source = source
        self.input = input


def is_ours(path: str) -> bool:
    """Whether a stack frame's file is of this package."""
    return path.startswith(_PACKAGE_ROOT)


@functools.lru_cache(maxsize=1024)
def is_model_file(path: str) -> bool:
    """Whether a stack frame's file is the model's code: not torch's, Python's or ours."""
    if path.startswith((_TORCH_ROOT, _PACKAGE_ROOT, "<")):
        return False
    if path.startswith(_PYTHON_ROOT) and not is_installed(path):
        return False
    return not any(part in path for part in ("/importlib/", "/huggingface_hub/"))


def is_installed(path: str) -> bool:
    """Whether a file belongs to an installed package, so that the person does not edit it."""
    return any(part in path for part in _INSTALLED)


def model_line(error: BaseException) -> str:
    """`file.py:line` of the innermost frame of model code that `error` passed through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_model_file(frame.filename):
            return ModelLine.of(frame.filename, frame.lineno)
    return ""


def shown(path: Path) -> Path:
    """A path as a person reads it: relative to the current folder if it lies inside."""
    folder = Path.cwd()
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def no_file(path: Path) -> CaptureError:
    """The error for a file that does not exist, with the nearest names in its folder."""
    path = shown(path)
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, [n for n in names if n.endswith(path.suffix)], n=3)
    if near:
        help = f"did you mean {' or '.join(f'`{name}`' for name in near)}?"
    elif not folder.is_dir():
        help = f"there is no folder `{folder}` either; paths are relative to the spec's file"
    else:
        help = "check the name; paths are relative to the spec's file"
    return CaptureError("SH0350", f"there is no file `{path}`", help=help)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, and the next one if it only announces that."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text.rstrip(".")
