"""What an explanation is made of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Link:
    """One reason in a chain: what an op or a statement does, and where it stands.

    Attributes:
        text: what happens.
        place: the statement's place, `llama.shard:7`; empty for an op.
        line: the statement as written.
        source: the model's line, `modeling_llama.py:245`; empty for a statement.
    """

    text: str
    place: str = ""
    line: str = ""
    source: str = ""

    def to_json(self) -> dict[str, object]:
        """The link in the document."""
        return {"text": self.text, "place": self.place, "line": self.line, "source": self.source}


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to split an op along an axis, and the bytes that it moves in one step."""

    text: str
    bytes: int
    chosen: bool

    def to_json(self) -> dict[str, object]:
        """The alternative in the document."""
        return {"text": self.text, "bytes": self.bytes, "chosen": self.chosen}


@dataclass(frozen=True, slots=True)
class Lost:
    """A layout that propagation dropped: what a neighbour of the op asked for.

    Attributes:
        text: who asked for what.
        source: the model's line of the neighbour, `modeling_llama.py:245`.
        origin: where the neighbour has it from.
    """

    text: str
    source: str
    origin: Link | None

    def to_json(self) -> dict[str, object]:
        """The layout in the document."""
        origin = self.origin.to_json() if self.origin is not None else None
        return {"text": self.text, "source": self.source, "origin": origin}


@dataclass(frozen=True, slots=True)
class Story:
    """Why a tensor lies as it does along one axis.

    Attributes:
        title: what it does along the axis.
        links: the chain of reasons, the nearest first.
        choice: the op whose ways are compared.
        alternatives: the ways, cheapest first.
        lost: the layouts that gave way here.
    """

    axis: str
    title: str
    links: tuple[Link, ...]
    choice: str = ""
    alternatives: tuple[Alternative, ...] = ()
    lost: tuple[Lost, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The story in the document."""
        return {
            "axis": self.axis,
            "title": self.title,
            "chain": [link.to_json() for link in self.links],
            "lost": [one.to_json() for one in self.lost],
            "choice": self.choice,
            "alternatives": [way.to_json() for way in self.alternatives],
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one tensor or collective is as it is.

    Attributes:
        subject: its name.
        kind: `param`, `buffer`, `input`, `constant`, `value`, `output` or `collective`.
        facts: its type, its place in the model, and what it costs.
        stories: one per axis that it has to do with.
        collectives: the collectives that move it, each with its reason.
    """

    subject: str
    kind: str
    facts: tuple[str, ...]
    stories: tuple[Story, ...] = ()
    collectives: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, object]:
        """The explanation in the document."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "facts": list(self.facts),
            "axes": [story.to_json() for story in self.stories],
            "collectives": list(self.collectives),
        }
