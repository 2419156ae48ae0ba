"""The programs at hand, by the calls that they answer: a few, and a word where they become many.

A number that changes at every step, or lengths that never come again, have a program compiled for
each. That is right, and slow, and would fill the memory.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

from shardlang.runtime.calls import Call, LoadedProgram

MOST_PROGRAMS = 32
"""How many are held at most: the declared one, and those that were used last."""

MANY_VALUES = 8
"""With so many programs for one argument, or for the shapes of inputs, a warning is given."""


class Kept:
    """The declared program, and the last ones that were used beside it."""

    def __init__(self, declared: Call, loaded: LoadedProgram, speaks: bool) -> None:
        """`speaks`: whether this device is the one that warns."""
        self.declared, self.speaks = declared, speaks
        self._programs = {declared: loaded}
        self._made: dict[str, set[str]] = {}
        self._count(declared)

    def on(self, moved: Callable[[LoadedProgram], LoadedProgram]) -> Kept:
        """The same programs on other tensors."""
        other = copy.copy(self)
        other._programs = {call: moved(loaded) for call, loaded in self._programs.items()}
        other._made = {name: set(values) for name, values in self._made.items()}
        return other

    def __contains__(self, call: Call) -> bool:
        """Whether a call has a program at hand."""
        return call in self._programs

    def __getitem__(self, call: Call) -> LoadedProgram:
        """The program of a call that has one."""
        return self._programs[call]

    def find(self, call: Call) -> LoadedProgram | None:
        """The program of a call if there is one, which is then the last used."""
        loaded = self._programs.pop(call, None)
        if loaded is not None:
            self._programs[call] = loaded
        return loaded

    def add(self, call: Call, loaded: LoadedProgram) -> None:
        """Hold another program, in place of the one that was not used for longest."""
        self._programs[call] = loaded
        if len(self._programs) > MOST_PROGRAMS:
            self._programs.pop(next(old for old in self._programs if old != self.declared))
        self._count(call)

    def _count(self, call: Call) -> None:
        """Warn where a call brings one value of many."""
        for name, value, advice in _varied(call):
            values = self._made.setdefault(name, set())
            if value not in values and len(values) < MANY_VALUES:
                values.add(value)
                if len(values) == MANY_VALUES and self.speaks:
                    _warn(name, advice)

    def items(self) -> Iterator[tuple[Call, LoadedProgram]]:
        """All calls with their programs."""
        yield from self._programs.items()


def _varied(call: Call) -> Iterator[tuple[str, str, str]]:
    """What tells calls apart: a name, its value as text, and what to do about many values."""
    for argument in call.arguments:
        name, value = argument.name, argument.value
        tensor = f"declare `input {name} : f32[] []` in the spec and pass `torch.tensor({name})`"
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        few = "pass one of a few values"
        yield f"argument `{name}`", argument.text, f"{tensor}, or {few}" if is_number else few
    shapes = str([(given.name, given.shape) for given in call.inputs])
    yield "shape of the inputs", shapes, "pad them to one of a few sizes"


def _warn(name: str, advice: str) -> None:
    warnings.warn(
        f"the {name} has had {MANY_VALUES} values, and a program was compiled for each, as will be"
        f" for every other one: {advice}",
        RuntimeWarning,
        stacklevel=2,
    )
