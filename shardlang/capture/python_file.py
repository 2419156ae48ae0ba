"""Plain modules from a Python file: `"mlp.py:build"(width = 64)`."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from torch import nn

from shardlang.capture.errors import CaptureError, ModelLine, first_line, model_line, no_file
from shardlang.capture.model_code import at_import, model_code
from shardlang.capture.source import ModelSource
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.runtime.data import Batch


class PythonSource(ModelSource):
    """A model that a function in a Python file returns.

    The function gets the keyword arguments of the `model` statement and returns a module, or a
    module and an iterable of example batches. The file may also define `batches(seed)`, which
    yields dicts from dotted input names to tensors. `mode` chooses train or eval; the function
    receives it only if it has a parameter of that name.
    """

    def __init__(
        self, target: str, kwargs: Mapping[str, object] | None = None, base: Path | None = None
    ) -> None:
        path, colon, function = target.rpartition(":")
        if not colon or not path:
            raise CaptureError(
                "SH0351",
                f"`{target}` does not name a function",
                help='write `model "file.py:function"`',
            )
        self.path = (base or Path()) / path
        self.function = function
        self.kwargs = dict(kwargs or {})
        self.mode = str(self.kwargs.get("mode", "train"))
        check_mode(self.mode)

    @functools.cached_property
    def namespace(self) -> ModuleType:
        """The executed file."""
        if not self.path.is_file():
            raise no_file(self.path)
        return load_file(self.path)

    @functools.cached_property
    def _arguments(self) -> dict[str, object]:
        """The keyword arguments for the build function, checked against its signature."""
        signature = inspect.signature(self._function)
        kwargs = dict(self.kwargs)
        if "mode" not in signature.parameters:
            kwargs.pop("mode", None)
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            raise CaptureError(
                "SH0351",
                f"`{self.function}` cannot be called this way: {first_line(error)}",
                help=f"its signature is `{self.function}{signature}`",
                source=self._place,
            ) from None
        return kwargs

    @functools.cached_property
    def _function(self) -> Callable[..., object]:
        """The build function."""
        function: object = getattr(self.namespace, self.function, None)
        if not callable(function):
            defined = [name for name, value in vars(self.namespace).items() if callable(value)]
            near = difflib.get_close_matches(self.function, defined, n=3)
            raise CaptureError(
                "SH0351",
                f"`{self.path.name}` defines no function `{self.function}`",
                help=f"did you mean {join_words(quote(near))}?"
                if near
                else "define it: it takes the arguments of the `model` statement and returns the"
                " module",
            )
        return function

    @property
    def _place(self) -> str:
        """Where the build function stands, as far as Python knows."""
        code = getattr(inspect.unwrap(self._function), "__code__", None)
        if code is None:
            return self.path.name
        return ModelLine.of(code.co_filename, code.co_firstlineno)

    def construct(self) -> nn.Module:
        return self._built()[0]

    def _built(self) -> tuple[nn.Module, Iterable[Batch] | None]:
        """The module and the example batches, or None, that the function returns."""
        made = self._function(**self._arguments)
        module, data = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(module, nn.Module):
            raise CaptureError(
                "SH0351",
                f"`{self.function}` returns a `{type(module).__name__}`",
                help="return a `torch.nn.Module`, alone or with an iterable of example batches",
                source=self._place,
            )
        return module, data

    def batches(self, seed: int) -> Iterator[Batch] | None:
        own = getattr(self.namespace, "batches", None)
        data = own(seed) if callable(own) else self._built()[1]
        try:
            return None if data is None else iter(data)
        except TypeError:
            raise CaptureError(
                "SH0351",
                f"the batches of `{self.path.name}` are a `{type(data).__name__}`",
                help="give an iterable of dicts from input names to tensors",
            ) from None


def load_file(path: Path) -> ModuleType:
    """Execute a Python file as a module; its folder is importable while it runs."""
    name = f"_shardlang_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with model_code():
            spec.loader.exec_module(module)
    except Exception as error:
        raise CaptureError(
            "SH0350",
            f"`{path.name}` cannot be run: {type(error).__name__}: {first_line(error)}",
            help=at_import(error),
            source=model_line(error),
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def check_mode(mode: str) -> None:
    """Raise SH0352 unless `mode` is train or eval."""
    if mode not in ("train", "eval"):
        raise CaptureError(
            "SH0352", f"there is no mode `{mode}`", help='choose `"train"` or `"eval"`'
        )
