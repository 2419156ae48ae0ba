"""The groups of parameters that the optimizer updates by settings of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.program import LocalProgram
from shardlang.plan.fold import fold, join_names, skeleton

_SHOWN = 4
"""So many names stand in a line, those of repeated layers as one."""


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters with one choice of settings.

    Attributes:
        settings: all of them that are stated, those that differ from the other groups' included.
    """

    names: tuple[str, ...]
    settings: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """The entry of the plan document."""
        return {"settings": dict(self.settings), "parameters": list(self.names)}


def groups_of(program: LocalProgram, rule: UpdateRule) -> tuple[ParamGroup, ...]:
    """The groups of what is trained; none where all parameters are updated alike."""
    if not rule.groups:
        return ()
    trained = [leaf.name for leaf in program.leaves if leaf.trainable]
    return tuple(
        ParamGroup(tuple(names), {**rule.settings, **own}) for names, own in rule.grouped(trained)
    )


def group_lines(groups: Sequence[ParamGroup]) -> Iterator[tuple[str, str, str]]:
    """The settings, the number of parameters and their names, of each group."""
    for group in groups:
        settings = ", ".join(f"{name} = {_text(value)}" for name, value in group.settings.items())
        layers = [join_names(names) for names in fold(group.names, skeleton)]
        more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
        yield settings, f"×{len(group.names)}", ", ".join(layers[:_SHOWN]) + more


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{list(value)}" if isinstance(value, tuple) else f"{value}"
