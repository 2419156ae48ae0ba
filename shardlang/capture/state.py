"""What a forward does beside its operators: attributes that it changes, numbers that Python draws.

A trace holds what they were while it was made, for all steps to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from shardlang.capture.generators import draws

_OWN = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, bytes)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a trace does not hold, and that need not be wrong: a warning or a note."""

    code: str
    message: str
    help: str
    source: str = ""
    severity: Literal["warning", "note"] = "warning"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The attributes of a model's modules, and where Python's random numbers stand."""

    attributes: dict[str, object]
    draws: dict[str, object]

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        """The present state."""
        return Snapshot(dict(_attributes(model)), dict(draws()))

    def remarks(self, after: Snapshot) -> Iterator[Remark]:
        """What differs in a later snapshot."""
        names = [*after.attributes, *(self.attributes.keys() - after.attributes.keys())]
        changed = [n for n in names if self.attributes.get(n) != after.attributes.get(n)]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            yield Remark(
                "SH0361",
                f"the forward changes the attribute `{changed[0]}`{more}: every step of the program"
                " begins with what it was at first",
                "if later steps depend on it, make it a buffer",
            )
        for library in self.draws:
            if self.draws[library] != after.draws.get(library):
                yield Remark(
                    "SH0361",
                    f"the forward draws random numbers from `{library}`: the program keeps those"
                    " that it drew first",
                    "draw them with torch, or switch the random choice off in the model's options",
                )


def _attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    """What can be compared of every plain attribute: its value, or which object it is."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OWN and not callable(value):
                yield f"{prefix}.{name}" if prefix else name, _comparable(value)


def _comparable(value: object) -> object:
    if isinstance(value, _PLAIN) or value is None:
        return value
    if isinstance(value, (list, tuple, set)):
        return tuple(map(_comparable, value))
    if isinstance(value, dict):
        return tuple((str(key), _comparable(item)) for key, item in value.items())
    return type(value), id(value)
