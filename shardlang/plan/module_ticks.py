"""Which modules are named along a picture of a step: those that take up enough of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

_MOST = 18
"""Names beside one another that can be read."""
_LEAST = 0.02
"""The share of the picture that a named module has, and that lies between two names."""
_LONGEST = 24


class Tick(NamedTuple):
    """A stretch of columns that belong to one module."""

    name: str
    start: int
    end: int


def ticks_of(places: Sequence[tuple[Hashable, str]]) -> list[Tick]:
    """The modules to name, as deep as there is room for.

    Args:
        places: for each column, its phase and module.
    """
    depths = [list(_runs(places, depth)) for depth in range(1, 7)]
    fitting = [runs for runs in depths if len(runs) <= _MOST] or depths[:1]
    return list(_apart(max(fitting, key=len)[:_MOST], _LEAST * len(places)))


def _apart(ticks: Sequence[Tick], distance: float) -> Iterator[Tick]:
    """Those that do not stand too near behind another one."""
    last = -distance
    for tick in ticks:
        middle = (tick.start + tick.end) / 2
        if middle - last >= distance:
            yield tick
            last = middle


def _runs(places: Sequence[tuple[Hashable, str]], depth: int) -> Iterator[Tick]:
    """Stretches of modules that are alike to some depth, without short ones."""
    start = 0
    for (_, name), run in groupby((phase, _cut(module, depth)) for phase, module in places):
        end = start + len(list(run))
        if name and end - start >= _LEAST * len(places):
            yield Tick(_short(name), start, end)
        start = end


def _cut(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :].lstrip("._")
