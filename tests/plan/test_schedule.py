"""Timelines of pipelines: in a terminal, as a picture, as a trace, and beside a measured one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shardlang.cost.timeline import Shipment, alike, timeline
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.passes.schedules.plain import gpipe, interleaved_1f1b, one_f_one_b
from shardlang.passes.schedules.zero_bubble import zbv
from shardlang.plan.schedule.lanes import Lanes, predicted
from shardlang.plan.schedule.measured import MeasuredError, measured
from shardlang.plan.schedule.picture import timeline_svg
from shardlang.plan.schedule.text import timeline_lines
from shardlang.plan.schedule.trace import trace_text
from tests.commands import document, shardlang
from tests.plan.plans import HERE

SVG = "{http://www.w3.org/2000/svg}"
SPEC = """
mesh { pp = 2 }
model "models.py:stack"(layers = 4)
input x : f32[4, 12, 8] [_, _, _]
pipeline pp { split "layers"  microbatches 4 }
"""


def lanes(schedule: PipelineSchedule) -> Lanes:
    """Its timeline where all stages are alike."""
    return predicted(timeline(schedule, alike), "flops")


def test_a_row_for_each_rank() -> None:
    assert list(timeline_lines(timeline(one_f_one_b(2, 3), alike))) == [
        "rank 0  F0 F1 .. .. B0 -- F2 B1 -- .. B2 --",
        "rank 1  .. F0 B0 -- F1 B1 -- F2 B2 --",
    ]


@pytest.mark.parametrize("make", [gpipe, interleaved_1f1b, zbv])
def test_long_rows_go_on_below(make: Callable[[int, int], PipelineSchedule]) -> None:
    schedule = make(4, 16)
    lines = list(timeline_lines(timeline(schedule, alike)))
    assert max(map(len, lines)) <= 80
    assert len(lines) > 5
    shown = [word for line in lines for word in line.split()[2:] if word.strip(".-")]
    several = schedule.stages > 4
    wanted = [str(a) if several else str(a)[1:] for a in schedule]
    assert sorted(shown) == sorted(wanted)


def test_cells_follow_the_times() -> None:
    spans = timeline(one_f_one_b(2, 2), lambda action: 3e6 if action.is_backward else 1e6)
    assert list(timeline_lines(spans)) == [
        "rank 0  F0 F1 .. .. .. B0 -- -- .. B1 -- --",
        "rank 1  .. F0 B0 -- -- F1 B1 -- --",
    ]


def test_waits_for_transfers_are_gaps() -> None:
    """A transfer takes as long as two forwards."""
    made = one_f_one_b(2, 2)
    names = [("0F0", "1F0"), ("0F1", "1F1"), ("1B0", "0B0"), ("1B1", "0B1")]
    pairs = [(Action.parse(a), Action.parse(b)) for a, b in names]
    sent = [Shipment((a.stage, b.stage), a, b, 2.0) for a, b in pairs]
    assert list(timeline_lines(timeline(made, alike, sent))) == [
        "rank 0  F0 F1 .. .. .. .. .. .. B0 -- .. B1 --",
        "rank 1  .. .. .. F0 B0 -- F1 B1 --",
    ]
    picture = ElementTree.fromstring(
        timeline_svg([predicted(timeline(made, alike, sent), "s")], "")
    )
    places = {
        (box.findtext(f"{SVG}title") or "").partition(":")[0]: float(box.attrib["x"])
        for box in picture.iter(f"{SVG}rect")
        if box.find(f"{SVG}title") is not None
    }
    unit = places["0F1"] - places["0F0"]
    assert places["1F0"] == pytest.approx(places["0F0"] + 3 * unit, abs=0.1)


def test_the_picture_has_a_box_for_each_action() -> None:
    made = lanes(zbv(2, 4))
    picture = ElementTree.fromstring(timeline_svg([made], "a & b"))
    boxes = [box for box in picture.iter(f"{SVG}rect") if box.find(f"{SVG}title") is not None]
    assert len(boxes) == len(list(made)) == 2 * 2 * 4 * 3
    said = [text.text or "" for text in picture.iter(f"{SVG}text")]
    assert {"a & b", "rank 0", "rank 1", "forward", "gradients of weights"} <= set(said)
    assert any("bubble" in one for one in said)
    first = boxes[0].find(f"{SVG}title")
    assert first is not None
    assert first.text == "0F0: forward of microbatch 0 in stage 0"


def test_the_trace_has_a_thread_for_each_rank() -> None:
    made = lanes(gpipe(2, 3))
    events = json.loads(trace_text([made]))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 2 * 3 * 2
    assert {(event["pid"], event["tid"]) for event in spans} == {(0, 0), (0, 1)}
    by_name = {event["name"]: event for event in spans}
    assert by_name["1B2"]["args"] == {"stage": 1, "microbatch": 2}
    assert by_name["0F1"]["ts"] == by_name["0F0"]["dur"]


def write(folder: Path, schedule: PipelineSchedule, step: int = 3, late: float = 0.0) -> None:
    """The files that the first devices of all ranks write."""
    spans = timeline(schedule, alike).spans
    for rank, actions in enumerate(schedule.ranks):
        rows = [
            {"action": str(a), "begin_s": spans[a].begin + late, "end_s": spans[a].end + late}
            for a in actions
        ]
        found = {"step": step, "rank": 2 * rank, "actions": rows}
        (folder / f"timeline.rank{2 * rank}.json").write_text(json.dumps(found))


MESH = Mesh((Axis("pp", 2), Axis("dp", 2)))


def test_what_a_run_measured_is_read(tmp_path: Path) -> None:
    schedule = one_f_one_b(2, 4)
    write(tmp_path, schedule)
    found = measured(tmp_path, MESH, "pp", schedule)
    assert found.title == "measured in step 3"
    assert found.ranks == lanes(schedule).ranks
    assert found.bubble == pytest.approx(1 / 4)


def test_what_is_no_measured_timeline_is_refused(tmp_path: Path) -> None:
    schedule = one_f_one_b(2, 4)
    with pytest.raises(MeasuredError, match="holds no timeline"):
        measured(tmp_path, MESH, "pp", schedule)
    with pytest.raises(MeasuredError, match="cannot read"):
        measured(tmp_path / "none", MESH, "pp", schedule)
    write(tmp_path, schedule)
    with pytest.raises(MeasuredError, match="other actions than rank 0"):
        measured(tmp_path, MESH, "pp", one_f_one_b(2, 8))
    (tmp_path / "timeline.rank2.json").write_text('{"step": 3, "actions": [{"action": "F"}]}')
    with pytest.raises(MeasuredError, match=r"rank2.json. is no timeline"):
        measured(tmp_path, MESH, "pp", schedule)
    (tmp_path / "timeline.rank2.json").unlink()
    with pytest.raises(MeasuredError, match="no timeline of rank 1 of `pp`"):
        measured(tmp_path, MESH, "pp", schedule)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A pipeline as a file."""
    (tmp_path / "models.py").write_text((HERE / "models.py").read_text())
    path = tmp_path / "pp.shard"
    path.write_text(SPEC)
    return path


def test_the_command(spec: Path, tmp_path: Path) -> None:
    status, out, _ = shardlang("schedule", spec)
    assert status == 0
    assert "rank 1  .. F0 B0 --" in out
    assert "(p-1)/m = 25.0%" in out
    for name in ("a.svg", "a.json", "a.csv"):
        assert shardlang("schedule", spec, "-o", tmp_path / name)[0] == 0
    made = PipelineSchedule.from_csv((tmp_path / "a.csv").read_text())
    assert made == one_f_one_b(2, 4)
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    ElementTree.fromstring((tmp_path / "a.svg").read_text())


def test_the_measured_timeline_stands_beside_the_predicted_one(spec: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for rank, actions in enumerate(one_f_one_b(2, 4).ranks):
        rows = [
            {"action": str(a), "begin_s": i, "end_s": i + 1} for i, a in enumerate(actions)
        ]  # fmt: skip
        text = json.dumps({"step": 7, "rank": rank, "actions": rows})
        (run / f"timeline.rank{rank}.json").write_text(text)
    found = document("schedule", spec, "--measured", run)
    assert found["predicted"]["unit"] == "flops"
    assert (found["measured"]["unit"], found["measured"]["length"]) == ("s", 8)
    path = tmp_path / "both.svg"
    assert shardlang("schedule", spec, "--measured", run, "-o", path)[0] == 0
    assert "measured in step 7: bubble 0.0%" in path.read_text()


def test_what_cannot_be_shown_is_refused(spec: Path, tmp_path: Path) -> None:
    plain = spec.with_name("plain.shard")
    plain.write_text(SPEC.replace("pipeline pp", "# "))
    for args, said in (
        ([plain], "states no `pipeline"),
        ([spec, "-o", tmp_path / "a.pdf"], "ends in none of"),
        ([spec, "-o", tmp_path / "a.csv", "--measured", tmp_path], "leave --measured out"),
        ([spec, "--measured", tmp_path], "holds no timeline"),
    ):
        status, _, err = shardlang("schedule", *args)
        assert status == 2
        assert said in err
    for name in ("a.svg", "a.json"):
        status, _, err = shardlang("schedule", spec, "-o", tmp_path / "no" / name)
        assert status == 1
        assert "SH0609" in err


def test_a_schedule_from_a_file_has_no_formula(spec: Path) -> None:
    (spec.parent / "order.csv").write_text(gpipe(2, 4).to_csv())
    stated = spec.with_name("file.shard")
    stated.write_text(SPEC.replace("microbatches 4", 'microbatches 4  schedule "order.csv"'))
    found = document("schedule", stated)
    assert found["bubble"]["text"] == "no formula: the schedule is that of a file"
    assert found["bubble"]["formula"] is None
