"""The picture of a step's memory: its areas, its peak, and the command that writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shardlang.plan.memory_picture import memory_svg
from shardlang.plan.module_ticks import ticks_of
from shardlang.plan.text import bytes_text
from tests.commands import ROOT, shardlang
from tests.plan.plans import FSDP, STACK, plan

SVG = "{http://www.w3.org/2000/svg}"
SPEC = ROOT / "examples" / "matmul" / "outer.shard"


def drawn(text: str) -> ElementTree.Element:
    """The picture of a spec."""
    return ElementTree.fromstring(memory_svg(plan(text).memory, "a & b"))


@pytest.mark.parametrize("text", [STACK, FSDP])
def test_the_picture_says_the_peak_and_its_kinds(text: str) -> None:
    peak = plan(text).memory.peak
    said = [one.text for one in drawn(text).iter(f"{SVG}text")]
    assert "a & b" in said
    assert {"forward", "backward"} <= set(said)
    assert any((line or "").startswith(f"peak: {bytes_text(peak.bytes)} in the") for line in said)
    assert {kind.value for kind, count in peak.held.items() if count} <= set(said)


def test_the_areas_stand_on_one_another_up_to_the_peak() -> None:
    """One area for each kind, and the highest point is the mark of the peak."""
    picture = drawn(STACK)
    areas = [path for path in picture.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]
    kinds = {kind for one in plan(STACK).memory.moments for kind, n in one.held.items() if n}
    assert len(areas) == len(kinds)
    tops = [min(map(float, re.findall(r" ([\d.]+)", path.get("d", "")))) for path in areas]
    (mark,) = picture.iter(f"{SVG}circle")
    assert min(tops) == pytest.approx(float(mark.get("cy", "")), abs=0.1)


def test_modules_are_named_as_deep_as_there_is_room() -> None:
    places = [("forward", f"layers.{i}.{part}") for i in range(3) for part in ("up", "down") * 4]
    assert [tick.name for tick in ticks_of(places)] == ["layers.0", "layers.1", "layers.2"]
    few = [place for place in places[:2] for _ in range(4)]
    assert [tick.name for tick in ticks_of(few)] == ["layers.0.up", "layers.0.down"]
    assert [tick[1:] for tick in ticks_of(few)] == [(0, 4), (4, 8)]


def test_the_command_writes_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "memory.svg"
    code, out, _ = shardlang("plan", str(SPEC), "--memory", str(path), "--json")
    assert code == 0
    document = json.loads(out)
    assert document["picture"] == str(path)
    assert bytes_text(document["memory"]["peak_bytes"]) in path.read_text()


@pytest.mark.parametrize(
    ("file", "status", "said"),
    [("m.pdf", 2, "does not end in .svg or .png"), ("no/m.svg", 1, "cannot write")],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, file: str, status: int, said: str
) -> None:
    code, _, err = shardlang("plan", str(SPEC), "--memory", str(tmp_path / file))
    assert code == status
    assert said in err
