"""A picture of a graph: boxes and arrows in nested modules, with nothing of fx left in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum

MOST_READ = 4
"""So many names a box says that it reads."""

_NUMBERED = re.compile(r"(?:(.*?)\.)?(\d+)(?:\.(.*))?")


class BoxKind(str, Enum):
    """What a box stands for."""

    PARAM = "param"
    BUFFER = "buffer"
    INPUT = "input"
    CONSTANT = "constant"
    OP = "op"
    RESHARD = "reshard"
    OUTPUT = "output"

    __str__ = str.__str__


class Drawn(str, Enum):
    """Which stage of the passes a picture shows; `STEP` is all that a device runs in training."""

    TRACED = "traced"
    PROPAGATED = "propagated"
    REWRITTEN = "rewritten"
    STEP = "step"

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class Box:
    """One thing in the picture.

    Attributes:
        id: unique, a name of the graph.
        module: the module that it stands in.
        lines: its text; the first line is its title.
        op: for an op its name; for a reshard the name of its collective, or of the local change.
        light: for an op whether it only carries its factors along (pointwise and the like).
        names: for several ops in one box, the names of all.
        title: the module that the box stands for alone, without the names of those around it.
        params: lines of each parameter that this box alone reads.
        reads: what it reads of another half of a step.
        again: whether the backward makes a value of the forward once more.
        flight: where a collective starts, and where it is waited for.

    What a box reads, and its flight, may differ between layers that are otherwise alike.
    """

    id: str
    kind: BoxKind
    module: str
    lines: tuple[str, ...]
    op: str = ""
    light: bool = False
    names: tuple[str, ...] = ()
    title: str = ""
    params: tuple[tuple[str, ...], ...] = ()
    reads: tuple[str, ...] = ()
    flight: tuple[str, ...] = ()
    again: bool = False

    @property
    def text(self) -> tuple[str, ...]:
        """All lines that are drawn."""
        few = self.reads if len(self.reads) <= MOST_READ else (*self.reads[:MOST_READ], "…")
        again = ("again",) if self.again else ()
        reads = (f"reads {', '.join(few)}",) if few else ()
        return (*self.lines, *again, *reads, *self.flight)


@dataclass(frozen=True, slots=True)
class Arrow:
    """A value on its way from the box that makes it to one that reads it.

    Attributes:
        moves: whether its layout has still to be changed on the way.
    """

    source: str
    target: str
    lines: tuple[str, ...] = ()
    moves: bool = False


@dataclass(slots=True)
class Picture:
    """Boxes in the order of the program, arrows, and how often each repeated module stands for."""

    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: dict[tuple[str, str], Arrow] = field(default_factory=dict)
    repeats: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Module to the pattern of all that it stands for, and their number."""

    def add(self, box: Box) -> None:
        """Add a box."""
        self.boxes[box.id] = box

    def connect(self, arrow: Arrow) -> None:
        """Add an arrow; one from and to itself is left out, of two alike the first stands."""
        if arrow.source != arrow.target:
            self.arrows.setdefault((arrow.source, arrow.target), arrow)

    def into(self) -> dict[str, list[Arrow]]:
        """Arrows by target."""
        found: dict[str, list[Arrow]] = {name: [] for name in self.boxes}
        for arrow in self.arrows.values():
            found[arrow.target].append(arrow)
        return found

    def out_of(self) -> dict[str, list[Arrow]]:
        """Arrows by source."""
        found: dict[str, list[Arrow]] = {name: [] for name in self.boxes}
        for arrow in self.arrows.values():
            found[arrow.source].append(arrow)
        return found

    def renamed(self, names: dict[str, str | None]) -> Picture:
        """The picture with boxes joined to others, or removed where the name is None."""
        made = Picture(repeats=dict(self.repeats))
        for name, box in self.boxes.items():
            if names.get(name, name) == name:
                made.add(box)
        for arrow in self.arrows.values():
            ends = names.get(arrow.source, arrow.source), names.get(arrow.target, arrow.target)
            if ends[0] is not None and ends[1] is not None:
                made.connect(replace(arrow, source=ends[0], target=ends[1]))
        return made


def inside(module: str, outer: str) -> bool:
    """Whether a module is another one or lies within it."""
    return not outer or module == outer or module.startswith(outer + ".")


def seen_from(module: str, other: str) -> str:
    """Where another module is, as seen from one: one of another layer is named by its distance.

    >>> seen_from("h.3.mlp.up", "h.4.mlp.down")
    ' in mlp.down, 1 layer on'
    """
    here, there = _NUMBERED.fullmatch(module), _NUMBERED.fullmatch(other)
    if here is None or there is None or here[1] != there[1]:
        return f" in {other}" if other else ""
    distance = int(there[2]) - int(here[2])
    layers = f"{abs(distance)} layer{'s' * (abs(distance) > 1)}"
    far = f", {layers} {'on' if distance > 0 else 'before'}" if distance else ""
    return (f" in {there[3]}" if there[3] else "") + far


def common_module(modules: list[str]) -> str:
    """The innermost module around all of some modules."""
    parts = [module.split(".") for module in modules]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)
