"""Stages of a pipeline that are alike but for the numbers of their layers are drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shardlang.graph.picture import Box, Picture, inside
from shardlang.plan.fold import skeleton

Signature = tuple[object, ...]


def fold_stages(picture: Picture, frames: Sequence[str]) -> Picture:
    """Draw each run of stages that are alike as its first one.

    Args:
        frames: the frames of the stages, in order.
    """
    start = 0
    while start < len(frames):
        end = start + 1
        while end < len(frames) and _alike(picture, frames[start], frames[end]):
            end += 1
        if end - start > 1:
            picture = _folded(picture, frames[start:end])
        start = end
    return picture


def _alike(picture: Picture, one: str, other: str) -> bool:
    return _signature(picture, one) == _signature(picture, other)


def _members(picture: Picture, frame: str) -> list[Box]:
    return [box for box in picture.boxes.values() if inside(box.module, frame)]


def _signature(picture: Picture, frame: str) -> Signature:
    """What a stage looks like without numbers, and how its boxes are connected."""
    boxes = _members(picture, frame)
    place = {box.id: i for i, box in enumerate(boxes)}
    into = picture.into()
    repeats = [count for name, (_, count) in picture.repeats.items() if inside(name, frame)]
    rows = [
        (
            box.kind, skeleton(box.module[len(frame) :]), skeleton(box.title),
            tuple(map(skeleton, box.lines)), box.params,
            tuple(sorted((place.get(a.source, -1), a.lines) for a in into[box.id])),
        )
        for box in boxes
    ]  # fmt: skip
    return (*rows, tuple(repeats))


def _folded(picture: Picture, frames: Sequence[str]) -> Picture:
    """The picture with the first stage of a run in the place of all."""
    kept = _members(picture, frames[0])
    place: dict[str, tuple[str, str]] = {}
    for frame in frames:
        for box, same in zip(_members(picture, frame), kept, strict=True):
            place[box.id] = frame, same.id
    gone = [frame for frame in frames[1:]]
    made = Picture(
        repeats={
            name: found
            for name, found in picture.repeats.items()
            if not any(inside(name, frame) for frame in gone)
        }
    )
    last = frames[-1].rpartition(" ")[2]
    made.repeats[frames[0]] = f"stages {frames[0].rpartition(' ')[2]}..{last}", len(frames)
    for name, box in picture.boxes.items():
        if name not in place or place[name][0] == frames[0]:
            made.add(box)
    for arrow in picture.arrows.values():
        ends = [place.get(name, ("", name)) for name in (arrow.source, arrow.target)]
        if not ends[0][0] or not ends[1][0] or ends[0][0] == ends[1][0]:
            made.connect(replace(arrow, source=ends[0][1], target=ends[1][1]))
    return made
