"""Plans as text: within 80 columns, repeated layers once, the last line a summary."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shardlang.ir.mesh import Axis, Mesh
from shardlang.plan.compare import compare
from shardlang.plan.fold import join_names, join_sentences, skeleton, split_prefix
from shardlang.plan.render import render_plan
from shardlang.plan.render_comparison import render_comparison
from shardlang.plan.text import bytes_text, mesh_lines, seconds_text
from tests.commands import document, shardlang
from tests.plan.plans import FSDP, HERE, SP, STACK, TP, plan


@pytest.mark.parametrize("text", [TP, SP, STACK, FSDP])
def test_a_plan_fits_80_columns(text: str) -> None:
    lines = render_plan(plan(text)).split("\n")
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("8 devices: ")
    assert not any(line.endswith(" ") for line in lines)


def test_the_last_line_sums_it_up() -> None:
    last = render_plan(plan(TP)).split("\n")[-1]
    assert last == "8 devices: 2 calls sending 1.55 KiB a step, at most 5.46 KiB of memory each"


def test_repeated_layers_are_one() -> None:
    text = render_plan(plan(STACK))
    assert "  layers.{0..2}" in text
    assert text.count("up.weight") == 1
    assert "all_reduce     tp layers.{0..2}.down" in text
    assert "×3" in text


def test_repeated_tensors_that_end_in_their_number_are_counted() -> None:
    text = 'mesh { dp = 2 }\nmodel "models.py:tables"()\ninput x : f32[4, 8] [dp, _]\n'
    lines = render_plan(plan(text)).split("\n")
    row = r"  table_l\{0\.\.1\} ×2 +f32\[8, 8\] +\[8, 8\] +256 B"
    assert any(re.fullmatch(row, line) for line in lines)


def test_folding_of_names() -> None:
    assert skeleton("layers.12.fc1") == "layers.#.fc#"
    assert join_names(["a.0.b", "a.1.b", "a.2.b"]) == "a.{0..2}.b"
    assert join_names(["a.0", "a.5"]) == "a.{0,5}"
    assert join_names(["mul_1", "mul_7", "mul_9", "mul_30"]) == "mul_*"
    assert join_sentences(["dim 1 of `a.0`", "dim 1 of `a.1`"]) == "dim 1 of `a.{0..1}`"
    assert split_prefix("m.layers.{0..3}.up.weight") == ("m.layers.{0..3}", "up.weight")
    assert split_prefix("norm.weight") == ("", "norm.weight")


def test_units() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1024, 1536, 10 * 2**20, 2**40)] == [
        "0 B", "1023 B", "1 KiB", "1.50 KiB", "10 MiB", "1 TiB",
    ]  # fmt: skip
    assert [seconds_text(s) for s in (2.0, 0.0025, 3e-7)] == ["2 s", "2.5 ms", "0.3 us"]


def test_meshes_are_drawn() -> None:
    two = Mesh((Axis("dp", 2), Axis("tp", 3)))
    assert mesh_lines(two) == ["        0 1 2  tp", "  dp 0  0 1 2", "  dp 1  3 4 5"]
    three = Mesh((Axis("pp", 2), *two.axes))
    assert mesh_lines(three)[4:] == ["  pp 1", *mesh_lines_from(6)]
    wide = mesh_lines(Mesh((Axis("dp", 512),)))
    assert max(map(len, wide)) <= 80


def mesh_lines_from(first: int) -> list[str]:
    """The grid of a dp 2 x tp 3 mesh that starts at a device of two digits at most."""
    rows = [[first + 3 * row + i for i in range(3)] for row in range(2)]
    body = [f"  dp {r}  " + " ".join(f"{n:>2}" for n in row) for r, row in enumerate(rows)]
    return ["         0  1  2  tp", *body]


def test_comparison() -> None:
    text = render_comparison(compare(plan(TP), plan(SP)), "tp.shard", "sp.shard")
    lines = text.split("\n")
    assert max(map(len, lines)) <= 80
    assert lines[0] == "tp.shard → sp.shard"
    assert "      f32[4@dp, 12, 8] → f32[4@dp, 12@tp, 8]" in lines
    assert "      1.12 KiB (1) → -" in lines
    assert lines[-1].startswith("2 layouts, 4 collectives differ; sent +576 B, memory")
    assert render_comparison(compare(plan(TP), plan(TP)), "a", "b").endswith("\nno difference")


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """A folder with the specs as files."""
    (tmp_path / "models.py").write_text((HERE / "models.py").read_text())
    (tmp_path / "tp.shard").write_text(TP)
    (tmp_path / "sp.shard").write_text(SP)
    return tmp_path


def test_command(specs: Path) -> None:
    found = document("plan", specs / "tp.shard")
    assert found["totals"]["forward"]["all_reduce"]["count"] == 1
    against = document("plan", specs / "sp.shard", "--against", specs / "tp.shard")["against"]
    assert [change["name"] for change in against["tensors"]] == ["x", "output"]
    assert against["sent_bytes_more"] == 576
    status, out, _ = shardlang("plan", specs / "sp.shard", "--against", specs / "tp.shard")
    assert status == 0
    assert "layouts that differ" in out


def test_an_expectation_that_fails(specs: Path) -> None:
    (specs / "strict.shard").write_text('use "tp.shard"\nexpect { forbid all_reduce over tp }\n')
    status, out, err = shardlang("plan", specs / "strict.shard")
    assert status == 1
    assert "8 devices" in out
    assert "SH0502" in err
    status, out, _ = shardlang("plan", specs / "strict.shard", "--json")
    found = json.loads(out)
    assert status == 1
    assert found["ok"] is False
    assert found["collectives"]
    assert [one["code"] for one in found["diagnostics"]] == ["SH0502"]
