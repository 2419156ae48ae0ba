"""`shardlang init` on the model families and the examples: it compiles as it stands, splits what is
to be split, and moves no more bytes than the specs written by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, document, shardlang
from tests.families.test_families import FAMILIES, LAYER, PARALLEL_RESIDUAL

BY_HAND = {
    **{family: f"tests/families/{family}/tp.shard" for family in FAMILIES},
    "t5 example": "examples/t5/t5.shard",
    "llama example": "examples/llama/dp_tp.shard",
}
CONFIGS = {"t5 example": "examples/t5/t5.json", "llama example": "examples/llama/llama.json"}
LABELS_12 = ("--input", "labels:i64[4, 12]")


@functools.cache
def folder() -> Path:
    """Where the written specs lie, for the whole run."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="shardlang-init-"))


@functools.cache
def written(model: str, mesh: str) -> tuple[Path, dict[str, Any]]:
    """The spec that is written for a model, and the document of the command."""
    config = ROOT / CONFIGS.get(model, f"tests/families/{model}/config.json")
    path = folder() / f"{model.replace(' ', '_')}.{mesh}.shard"
    more = LABELS_12 if model == "t5 example" else ()
    sizes = ("--batch", "4", "--seq", "20")
    return path, document("init", config, "--mesh", mesh, "-o", path, *sizes, *more)


def on_four(model: str) -> tuple[Path, dict[str, Any]]:
    """What is written for data and tensor parallelism."""
    return written(model, "dp=2,tp=2")


@functools.cache
def plan_of(path: Path) -> dict[str, Any]:
    """The plan of a spec, made once."""
    return document("plan", path)


def total_bytes(plan: dict[str, Any]) -> int:
    """All bytes that a plan moves."""
    return sum(op["bytes"] for phase in plan["totals"].values() for op in phase.values())


@pytest.mark.parametrize("model", BY_HAND)
def test_it_moves_no_more_bytes_than_the_spec_by_hand(model: str) -> None:
    path, found = on_four(model)
    assert total_bytes(plan_of(path)) <= total_bytes(plan_of(ROOT / BY_HAND[model]))
    assert found["percent"] >= 90


@pytest.mark.parametrize("family", FAMILIES)
def test_the_collectives_of_each_layer_are_those_of_megatron(family: str) -> None:
    plan = plan_of(on_four(family)[0])
    each = 1 if family in PARALLEL_RESIDUAL else 2
    counts = dict.fromkeys(("0", "1"), 0)
    for row in plan["collectives"]:
        layer = LAYER.match(row["module"])
        if row["phase"] == "forward" and "tp" in row["axes"] and layer is not None:
            assert row["op"] == "all_reduce"
            counts[layer.group(2)] += row["count"]
    assert set(counts.values()) == {each}


@pytest.mark.parametrize(
    ("family", "mesh"),
    [("llama", "fsdp=2,tp=2"), ("gpt2", "dp=2,tp=2"), ("bert", "dp=2,tp=2"), ("phi3", "fsdp=4")],
)
def test_it_verifies_as_it_stands(family: str, mesh: str) -> None:
    found = document("verify", written(family, mesh)[0])
    assert found["loss"]["error"] < 1e-9
    assert found["gradients"]["max_error"] < 1e-9


def test_the_written_spec_is_canonical_and_says_what_it_did() -> None:
    path, found = on_four("bert")
    assert shardlang("fmt", "--check", path)[0] == 0
    text = path.read_text()
    assert text.startswith("# Written by `shardlang init")
    assert f"# {found['percent']:.1f}% of the bytes" in text
    assert "# Matrices left whole over tp: cls.predictions.transform.dense.weight" in text


def test_fsdp_alone_stores_everything_and_splits_the_batch() -> None:
    text = written("phi3", "fsdp=4")[0].read_text()
    assert 'store "**" over fsdp' in text
    assert "[fsdp, _]" in text
    assert "param" not in text.replace("parameter", "")


REFUSED = {
    "no file": ("none.json", (), 1, "SH0350"),
    "no configuration": ("list.json", (), 1, "SH0350"),
    "no function": ("model.py", (), 1, "SH0351"),
    "arguments missing": ("model.py:needs_width", (), 1, "SH0351"),
    "inputs unknown": ("model.py:narrow", (), 1, "--input"),
    "input malformed": ("model.py:narrow", ("--input", "x=3"), 1, "SH0353"),
    "input misnamed": ("model.py:narrow", ("--input", "y:f32[4, 4]"), 1, "SH0353"),
    "task unknown": ("config.json", ("--task", "poetry"), 1, "SH0352"),
    "task of other models": ("config.json", ("--task", "audio-classification"), 1, "SH0352"),
    "no axis size": ("config.json", ("--mesh", "dp"), 2, "is no axis and its size"),
    "axis twice": ("config.json", ("--mesh", "dp=2,dp=2"), 2, "stands twice"),
    "no role": ("config.json", ("--mesh", "dp=2,tp=2,zz=2"), 2, "has no role"),
    "pipeline": ("config.json", ("--mesh", "pp=2"), 2, "pipeline stages"),
    "stored over nothing": ("config.json", ("--store", "x"), 2, "no axis `x`"),
    "file there": ("config.json", ("-o", "config.json"), 2, "--force"),
    "no folder": ("config.json", ("-o", "none/such/x.shard"), 2, "no folder none/such"),
    "a folder": ("config.json", ("-o", "."), 2, "is a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_says_so(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options, status, message = REFUSED[case]
    (tmp_path / "list.json").write_text("[]")
    config = ROOT / "tests" / "families" / "llama" / "config.json"
    (tmp_path / "config.json").write_text(config.read_text())
    (tmp_path / "model.py").write_text((Path(__file__).parent / "models.py").read_text())
    monkeypatch.chdir(tmp_path)
    mesh = () if "--mesh" in options else ("--mesh", "dp=2,tp=2")
    found, _, err = shardlang("init", model, *mesh, *options)
    assert found == status
    assert message in " ".join(err.split())
    assert "internal error" not in err
