"""One trace of a model for all specs that a test process compiles of it.

A spec is checked, planned, proven and drawn by tests of their own, and most specs are of a few
models. What `capture` gives depends on the model's files, its arguments, the inputs and the values
of which a spec speaks, and no pass changes it: `tests/capture` tests the function itself.
"""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

from shardlang.capture import (
    CallableSource,
    Captured,
    HfSource,
    InputSpec,
    ModelSource,
    PythonSource,
    capture,
)
from shardlang.capture.setting import Setting
from shardlang.compiler import driver
from shardlang.compiler.driver import Compiled
from shardlang.spec.types import Spec

ROOT = Path(__file__).parents[1]
SHARED = (HfSource, PythonSource, CallableSource)
MOST = 40
"""How many traces a process keeps."""

FEW = 4
"""How many programs are kept."""

_KEPT: OrderedDict[str, Captured] = OrderedDict()


class _Marked:
    """Which modules a spec speaks of, with the patterns by which it does."""

    def __init__(self, spec: Spec) -> None:
        self.asks = _asks(spec)
        self.patterns = [value.pattern.text for value in spec.values]

    def __call__(self, name: str) -> bool:
        return self.asks(name)


_asks: Callable[[Spec], Callable[[str], bool]] = driver.marked


@contextmanager
def programs() -> Iterator[None]:
    """Inside, what is compiled of a spec is kept for the next commands on the same text."""
    kept, compiled = OrderedDict[str, Compiled](), driver.compile_spec

    def once(spec: Spec, *args: Any, **how: Any) -> Compiled:
        key = repr((spec, args, how))
        if key not in kept:
            kept[key] = compiled(spec, *args, **how)
        kept.move_to_end(key)
        if len(kept) > FEW:
            kept.popitem(last=False)
        return kept[key]

    vars(driver)["compile_spec"] = once
    try:
        yield
    finally:
        vars(driver)["compile_spec"] = compiled


def share() -> None:
    """From now on the compiler of this process traces a model of the tree once."""
    vars(driver)["marked"] = _Marked
    vars(driver)["capture"] = _captured


def _captured(
    source: ModelSource, inputs: Sequence[InputSpec], mark: Callable[[str], bool]
) -> Captured:
    key = _key(source, inputs, mark)
    if key is None:
        return capture(source, inputs, mark)
    if key not in _KEPT:
        _KEPT[key] = capture(source, inputs, mark)
    _KEPT.move_to_end(key)
    if len(_KEPT) > MOST:
        _KEPT.popitem(last=False)
    return _KEPT[key]


def _key(
    source: ModelSource, inputs: Sequence[InputSpec], mark: Callable[[str], bool]
) -> str | None:
    """All that a trace depends on; None for a model whose files a test may change."""
    if not isinstance(mark, _Marked) or not isinstance(source, SHARED):
        return None
    path = _file_of(source)
    stated = {
        name: value
        for name, value in vars(source).items()
        if not isinstance(getattr(type(source), name, None), functools.cached_property)
    }
    state = _state_of(stated.pop("setting", Setting()))
    if state is None or path is None or not path.is_relative_to(ROOT):
        return None
    asked = (sorted(stated.items()), state, list(inputs), sorted(mark.patterns))
    return repr((type(source), path.stat().st_mtime_ns, *asked))


def _state_of(setting: Setting) -> list[list[str] | None] | None:
    """What a setting says, in one order; None if it has arguments, of whatever type."""
    if setting.arguments:
        return None
    said = setting.evaluated, setting.trained
    return [None if names is None else sorted(names) for names in said]


def _file_of(source: ModelSource) -> Path | None:
    """Where all that a model is made of is written; None if there is more to it than a file."""
    if not isinstance(source, CallableSource):
        path = Path(vars(source)["path"]).resolve()
        return path if path.is_file() else None
    made = vars(source)["_construct"]
    if not isinstance(made, type | FunctionType) or "<" in made.__qualname__:
        return None
    return Path(inspect.getfile(made)).resolve()
