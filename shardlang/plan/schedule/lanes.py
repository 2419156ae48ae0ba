"""What each rank of a pipeline does when: predicted from the costs, or measured in a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardlang.cost.timeline import Timeline
from shardlang.ir.pipeline.action import Action


@dataclass(frozen=True, slots=True)
class Spell:
    """One action of a rank, from when to when."""

    action: Action
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Lanes:
    """The actions of every rank of a step.

    Attributes:
        title: `predicted`, or the step that was measured.
        unit: of the times: `s`, or `flops` of one device.
    """

    title: str
    unit: str
    ranks: tuple[tuple[Spell, ...], ...]

    @property
    def length(self) -> float:
        """From the beginning of the step to the end of its last action."""
        return max(spell.end for spell in self)

    @property
    def bubble(self) -> float:
        """Time in which ranks wait, as a part of the time in which they compute."""
        busy = sum(spell.end - spell.begin for spell in self)
        return len(self.ranks) * self.length / busy - 1 if busy else 0.0

    def __iter__(self) -> Iterator[Spell]:
        for spells in self.ranks:
            yield from spells

    def to_json(self) -> dict[str, object]:
        """The entry of the document."""
        ranks = [
            [{"action": str(one.action), "begin": one.begin, "end": one.end} for one in spells]
            for spells in self.ranks
        ]
        return {"unit": self.unit, "length": self.length, "bubble": self.bubble, "ranks": ranks}


def predicted(spans: Timeline, unit: str) -> Lanes:
    """The lanes of a timeline that was worked out."""
    ranks = (
        tuple(Spell(action, spans.spans[action].begin, spans.spans[action].end) for action in row)
        for row in spans.schedule.ranks
    )
    return Lanes("predicted", unit, tuple(ranks))
