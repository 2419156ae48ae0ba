"""Repeated layers: modules `layers.0`, `layers.1`, … that are drawn alike are drawn once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardlang.graph.picture import Arrow, Box, Picture, inside

_NUMBERED = re.compile(r"^(.*\.)?(\d+)$")

_LABELS = re.compile(r" ~\w+")

Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive modules that are drawn alike."""

    modules: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """All of them: `model.layers.{0..3}`."""
        stem, first = self.modules[0].rpartition(".")[::2]
        last = self.modules[-1].rpartition(".")[2]
        return f"{stem}.{{{first}..{last}}}" if stem else f"{{{first}..{last}}}"


def fold_repeats(picture: Picture) -> Picture:
    """Draw every run of repeated modules once, outermost first."""
    while True:
        run = next(_runs(picture), None)
        if run is None:
            return picture
        picture = _folded(picture, run)


def _runs(picture: Picture) -> Iterator[Run]:
    """Runs of at least two modules, in the order of their depth."""
    for stem, numbers in sorted(_families(picture).items(), key=lambda item: item[0].count(".")):
        ordered = sorted(numbers)
        modules = [f"{stem}{number}" for number in ordered]
        signatures = [_signature(picture, module) for module in modules]
        start = 0
        for end in range(1, len(modules) + 1):
            follows = end < len(modules) and ordered[end] == ordered[end - 1] + 1
            if follows and signatures[end] == signatures[start]:
                continue
            if end - start > 1:
                yield Run(tuple(modules[start:end]))
            start = end


def _families(picture: Picture) -> dict[str, set[int]]:
    """`model.layers.` to the numbers of its parts."""
    found: dict[str, set[int]] = {}
    for box in picture.boxes.values():
        parts = box.module.split(".")
        for depth in range(1, len(parts) + 1):
            match = _NUMBERED.match(".".join(parts[:depth]))
            if match:
                found.setdefault(match[1] or "", set()).add(int(match[2]))
    return found


def _members(picture: Picture, module: str) -> list[Box]:
    return [box for box in picture.boxes.values() if inside(box.module, module)]


def _signature(picture: Picture, module: str) -> Signature:
    """What a module looks like, without its number and without what it is connected to."""
    boxes = _members(picture, module)
    place = {box.id: i for i, box in enumerate(boxes)}
    into = picture.into()
    rows = []
    for box in boxes:
        arrows = sorted(_end(place.get(arrow.source), arrow) for arrow in into[box.id])
        rows.append(
            (box.kind, box.module[len(module) :], box.title, box.lines, box.params, tuple(arrows))
        )
    return tuple(rows)


def _end(place: int | None, arrow: Arrow) -> tuple[int, tuple[str, ...]]:
    """An arrow by the place of its source; one from outside without the labels of its gradient."""
    if place is not None:
        return place, arrow.lines
    return -1, tuple(_LABELS.sub("", line) for line in arrow.lines)


def _folded(picture: Picture, run: Run) -> Picture:
    """The picture with the first module of a run in the place of all."""
    first, last = run.modules[0], run.modules[-1]
    kept = [box.id for box in _members(picture, first)]
    names: dict[str, str | None] = {}
    for module in run.modules[1:]:
        names.update(dict.fromkeys((box.id for box in _members(picture, module)), None))
    leaving = dict(zip((box.id for box in _members(picture, last)), kept, strict=True))
    made = Picture(repeats={**picture.repeats, first: (run.pattern, len(run.modules))})
    made.boxes = {name: box for name, box in picture.boxes.items() if name not in names}
    for arrow in picture.arrows.values():
        source = (
            leaving.get(arrow.source, arrow.source) if arrow.target not in names else arrow.source
        )
        if source in made.boxes and arrow.target in made.boxes:
            made.connect(replace(arrow, source=source))
    return made
