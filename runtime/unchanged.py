"""Modules as they were when they were last looked at: what is unchanged needs no other look."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from operator import itemgetter

from torch import Tensor, nn

_FLAT = chain.from_iterable

_OWN = frozenset(vars(nn.Module()))
"""The attributes of every module."""


class Unchanged:
    """What modules hold at one time, compared in a few calls for all of them together."""

    def __init__(self, modules: Sequence[nn.Module], settings: Sequence[Collection[str]]) -> None:
        """Take note of modules that `may_be_noted`.

        Args:
            settings: of each, the names of plain attributes.
        """
        self._modules = modules
        self._held = [vars(module) for module in modules]
        self._sizes = list(map(len, self._held))
        self._settings = [itemgetter("training", "_modules", *names) for names in settings]
        tables = [x for held in self._held for x in held.values() if isinstance(x, dict)]
        self._empty = [one for one in tables if not one]
        self._filled = [one for one in tables if one]
        self._children = [held["_modules"] for held in self._held]
        self._lacking = [(one, name) for one in tables for name in one if one[name] is None]
        self._was = self._now()

    def __call__(self) -> bool:
        """Whether all is as it was. Values of one type alone are compared, and no tensors."""
        if any(self._empty) or list(map(len, self._held)) != self._sizes:
            return False
        try:
            now = self._now()
        except KeyError:
            return False
        return now == self._was and all(one[name] is None for one, name in self._lacking)

    def _now(self) -> list[object]:
        values = [pick(held) for pick, held in zip(self._settings, self._held, strict=True)]
        return [
            *map(type, self._modules),
            *map(type, _FLAT(values)),
            *map(id, _FLAT(map(dict.values, self._children))),
            *_FLAT(self._filled),
            *values,
        ]


def may_be_noted(module: nn.Module) -> bool:
    """Whether what the module holds is not changed in place, and no tensor that a loop put there.

    A tensor is to be let go when the loop lets it go.
    """
    theirs = (value for name, value in vars(module).items() if name not in _OWN)
    return not any(isinstance(value, (list, dict, set, Tensor)) for value in theirs)
