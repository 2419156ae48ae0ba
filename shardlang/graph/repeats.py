"""Repeated layers: modules `layers.0`, `layers.1`, … that are drawn alike are drawn once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardlang.graph.picture import Arrow, Box, BoxKind, Picture, inside

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
    """The boxes of a module; collectives first, since when each starts differs between layers."""
    boxes = [box for box in picture.boxes.values() if inside(box.module, module)]
    return sorted(boxes, key=_order)


def _order(box: Box) -> tuple[int, str, tuple[str, ...]]:
    is_sent = box.kind is BoxKind.RESHARD
    return (0, box.op, box.lines) if is_sent else (1, "", ())


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
    first = run.modules[0]
    kept = _members(picture, first)
    alike: dict[str, list[Box]] = {box.id: [] for box in kept}
    place: dict[str, tuple[str, str]] = {}
    for module in run.modules:
        for box, same in zip(_members(picture, module), kept, strict=True):
            place[box.id] = module, same.id
            alike[same.id].append(box)
    made = Picture(repeats={**picture.repeats, first: (run.pattern, len(run.modules))})
    for name, box in picture.boxes.items():
        if name in alike:
            made.add(_typical(box, alike[name]))
        elif name not in place:
            made.add(box)
    for arrow in picture.arrows.values():
        ends = [place.get(name, ("", name)) for name in (arrow.source, arrow.target)]
        if not ends[0][0] or not ends[1][0] or ends[0][0] == ends[1][0]:
            made.connect(replace(arrow, source=ends[0][1], target=ends[1][1]))
    return made


def _typical(box: Box, alike: list[Box]) -> Box:
    """The box with what most of those say that it stands for."""
    reads = Counter(one.reads for one in alike).most_common(1)
    flight = Counter(one.flight for one in alike).most_common(1)
    return replace(box, reads=reads[0][0], flight=flight[0][0])
