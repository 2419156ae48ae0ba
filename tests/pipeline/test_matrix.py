"""A sample of the matrix of families, meshes and schedules; `make prove` has all of it."""

from __future__ import annotations

import pytest

from tests.broad import sampled
from tests.pipeline import matrix
from tests.pipeline.families import FAMILIES
from tests.pipeline.matrix import Row, rows

SAMPLE = (
    ("llama", "pp = 2, fsdp = 2", "1f1b"), ("gpt2", "pp = 2", "zb_h1"), ("t5", "pp = 2", "1f1b"),
    ("unet", "pp = 2, dp = 2, tp = 2", "zbv"), ("unet", "pp = 4", "interleaved_1f1b"),
)  # fmt: skip


@pytest.mark.parametrize(("family", "mesh", "schedule"), sampled(SAMPLE, (SAMPLE[0], SAMPLE[4])))
def test_a_pipeline_computes_what_the_model_does(family: str, mesh: str, schedule: str) -> None:
    (made,) = rows(FAMILIES[family], mesh, [schedule])
    assert made.ok, made


def test_every_family_is_in_the_matrix() -> None:
    assert FAMILIES.keys() == {"llama", "gpt2", "bert", "t5", "unet", "mixtral"}
    assert {mesh for _, mesh, _ in SAMPLE} < set(matrix.MESHES)


def test_one_wrong_row_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"gpipe": 1e-12, "1f1b": 2e-9}
    monkeypatch.setattr(
        matrix,
        "rows",
        lambda one, mesh, names: (Row(one.name, mesh, n, found[n], 0) for n in names),
    )
    given = ["--family", "unet", "--mesh", "pp = 2", "--schedule"]
    assert matrix.main([*given, "gpipe"]) == 0
    assert matrix.main([*given, "gpipe", "--schedule", "1f1b"]) == 1
    assert "WRONG" in capsys.readouterr().out
