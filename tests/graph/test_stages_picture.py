"""Pictures of pipelines: stages as frames, transfers as arrows with their bytes."""

from __future__ import annotations

import functools
import re

from shardlang.graph.draw import dot_of, picture_of
from shardlang.graph.picture import Drawn, Picture
from shardlang.plan.moments import Phase
from tests.plan.plans import compiled

SPEC = """
mesh { pp = %d }
model "models.py:stack"(layers = 8)
input x : f32[8, 12, 8] [_, _, _]
pipeline pp { split "layers"  microbatches 4  schedule %s }
"""
TIED = """
mesh { pp = 2 }
model "models.py:tied"()
input ids : i64[8, 5] below 9 [_, _]
pipeline pp { split "layers"  microbatches 2 }
"""


@functools.cache
def drawn(ranks: int = 4, schedule: str = "1f1b", factored: bool = True) -> Picture:
    """The picture of eight blocks."""
    return picture_of(compiled(SPEC % (ranks, schedule)), Drawn.STEP, factored)


def transfers(picture: Picture) -> list[tuple[str, str, tuple[str, ...]]]:
    """The frames between which something is sent, and what the arrow says."""
    found = []
    for arrow in picture.arrows.values():
        ends = [picture.boxes[name].module for name in (arrow.source, arrow.target)]
        frames = [module.split(".")[0] for module in ends]
        if frames[0] != frames[1] and all(frame.startswith("stage") for frame in frames):
            found.append((ends[0], ends[1], arrow.lines))
    return found


def test_every_stage_has_a_frame_and_every_transfer_its_bytes() -> None:
    size = (f"{2 * 12 * 8 * 4} B ×4",)
    there = [(f"stage {i}.forward", f"stage {i + 1}.forward", size) for i in range(3)]
    back = [(f"stage {i + 1}.backward", f"stage {i}.backward", size) for i in range(3)]
    assert sorted(transfers(drawn(factored=False))) == sorted([*there, *back])


def test_a_tied_table_is_drawn_in_both_of_its_stages() -> None:
    found = picture_of(compiled(TIED), Drawn.STEP, factored=False)
    tables = [
        (box.module.split(".")[0], lines[0])
        for box in found.boxes.values()
        for lines in (*box.params, box.lines)
        if lines[0].startswith("weight") and "f32[9, 6]" in lines
    ]
    assert tables == [("stage 0", "weight"), ("stage 1", "weight@1")]


def test_stages_that_are_alike_are_drawn_once() -> None:
    picture = drawn()
    assert picture.repeats["stage 1"] == ("stages 1..2", 2)
    frames = {box.module.split(".")[0] for box in picture.boxes.values()}
    assert {"stage 0", "stage 1", "stage 3"} <= frames
    assert "stage 2" not in frames
    assert {(a, b) for a, b, _ in transfers(picture)} == {
        ("stage 0.forward", "stage 1.forward"), ("stage 1.forward", "stage 3.forward"),
        ("stage 3.backward", "stage 1.backward"), ("stage 1.backward", "stage 0.backward"),
    }  # fmt: skip


def test_more_layers_make_no_larger_picture() -> None:
    few = SPEC.replace("layers = 8", "layers = 12") % (4, "1f1b")
    assert len(picture_of(compiled(few)).boxes) == len(drawn().boxes)


def test_a_phase_is_drawn_alone() -> None:
    text = dot_of(compiled(SPEC % (2, "zbv")), phases=[Phase.FORWARD])
    assert "stage 0.forward" in text
    assert ".backward" not in text
    assert re.search(r'" -> ".*label=" 768 B ×4"', text)
