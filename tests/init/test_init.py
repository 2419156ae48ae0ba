"""`shardlang init` on the model families and the examples: it compiles as it stands, splits what is
to be split, and moves no more bytes than the specs written by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.broad import sampled
from tests.commands import ROOT, document, shardlang
from tests.families.test_families import FAMILIES, LAYER, PARALLEL_RESIDUAL

BY_HAND = {
    **{family: f"tests/families/{family}/tp.shard" for family in FAMILIES},
    "t5 example": "examples/t5/t5.shard",
    "llama example": "examples/llama/dp_tp.shard",
    "gqa": "examples/llama/gqa.shard",
    "uneven": "examples/uneven/heads.shard",
    "uneven kv": "examples/uneven/kv.shard",
    "ffn": "examples/gspmd_ffn/ffn.shard",
    "mlp": "examples/megatron_mlp/mlp.shard",
    "matmul": "examples/matmul/outer.shard",
    "two towers": "examples/two_tower/two_tower.shard",
}
MODELS = {
    "t5 example": "examples/t5/t5.json",
    "llama example": "examples/llama/llama.json",
    "gqa": "examples/llama/llama.json",
    "uneven": "examples/uneven/llama.json",
    "uneven kv": "examples/uneven/llama.json",
    "ffn": "examples/gspmd_ffn/ffn.py:build",
    "mlp": "examples/megatron_mlp/mlp.py:build",
    "matmul": "examples/matmul/matmul.py:build",
    "two towers": "examples/two_tower/two_tower.py:build",
}
QUICK = ("gpt2", "gpt_neox", "llama", "ffn", "mlp", "matmul", "two towers")
"""Models that `make test` compares."""
SIZES = ("--batch", "4", "--seq", "20")
OPTIONS = {
    "t5 example": (*SIZES, "--input", "labels:i64[4, 12]"),
    "gqa": ("--batch", "8", "--seq", "20"),
    "uneven": ("--batch", "7", "--seq", "11"),
    "uneven kv": (
        "--batch", "7", "--seq", "11", "--arg", "hidden_size=36",
        "--arg", "num_attention_heads=6", "--arg", "num_key_value_heads=3",
    ),
    "ffn": ("--arg", "d_model=64", "--arg", "d_ff=256", "--input", "x0:f32[8, 16, 64]"),
    "mlp": (
        "--arg", "width=24", "--arg", "inner=90",
        "--input", "x:f32[6, 5, 24]", "--input", "target:f32[6, 5, 24]",
    ),
    "matmul": ("--arg", "k=10", "--arg", "n=7", "--input", "x:f32[6, 10]"),
    "two towers": (
        "--arg", "width=64", "--arg", "dropout=0.1", "--arg", "mode=train",
        "--input", "user:f32[32, 128]", "--input", "item:f32[32, 128]",
        "--input", "batch.labels.click:f32[32]",
    ),
}  # fmt: skip
MESHES = {
    "ffn": "x=2,y=2", "matmul": "d=4", "two towers": "dp=4", "gqa": "tp=4", "uneven kv": "tp=4",
}  # fmt: skip


@functools.cache
def folder() -> Path:
    """Where the written specs lie, for the whole run."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="shardlang-init-"))


@functools.cache
def written(model: str, mesh: str) -> tuple[Path, dict[str, Any]]:
    """The spec that is written for a model, and the document of the command."""
    source = ROOT / MODELS.get(model, f"tests/families/{model}/config.json")
    path = folder() / f"{model.replace(' ', '_')}.{mesh}.shard"
    options = OPTIONS.get(model, SIZES)
    return path, document("init", source, "--mesh", mesh, "-o", path, *options)


def on_four(model: str) -> tuple[Path, dict[str, Any]]:
    """What is written for four devices, with tensor parallelism where the spec by hand has it."""
    return written(model, MESHES.get(model, "dp=2,tp=2"))


@functools.cache
def plan_of(path: Path) -> dict[str, Any]:
    """The plan of a spec, made once."""
    return document("plan", path)


def total_bytes(plan: dict[str, Any]) -> int:
    """All bytes that a plan moves."""
    return sum(op["bytes"] for phase in plan["totals"].values() for op in phase.values())


@pytest.mark.parametrize("model", sampled(BY_HAND, QUICK))
def test_it_moves_no_more_bytes_than_the_spec_by_hand(model: str) -> None:
    path, found = on_four(model)
    assert total_bytes(plan_of(path)) <= total_bytes(plan_of(ROOT / BY_HAND[model]))
    assert found["percent"] is None or found["percent"] >= 90


@pytest.mark.parametrize("family", sampled(FAMILIES, ("gpt2", "gpt_neox", "llama")))
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


def test_a_checkpoint_folder_is_a_model(tmp_path: Path) -> None:
    """Its weights are those that the spec's model begins with."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(ROOT / "tests/families/llama/config.json")
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "weights")
    path = tmp_path / "specs" / "llama.shard"
    path.parent.mkdir()
    document("init", tmp_path / "weights", "--mesh", "dp=2,tp=2", "-o", path, "--seq", "8")
    assert 'model hf("../weights", task = "causal-lm")' in path.read_text()
    assert document("verify", path)["gradients"]["max_error"] < 1e-9


def test_arguments_are_written_as_literals(tmp_path: Path) -> None:
    options = ("--arg", "hidden_act=relu", "--arg", "use_cache=false", "--arg", "mode=eval")
    config = ROOT / "tests/families/llama/config.json"
    path = tmp_path / "llama.shard"
    document("init", config, "--mesh", "dp=2,tp=2", "-o", path, "--seq", "8", *options)
    (line,) = (line for line in path.read_text().splitlines() if line.startswith("model"))
    assert 'hidden_act = "relu", use_cache = false, mode = "eval")' in line


TWO = """from torch import nn
class Two(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
    def forward(self, x):
        y = super().forward(x)
        return {"near": y.square().mean(), "far": y.mean()}
"""


def test_a_loss_that_is_not_known_is_said(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(TWO)
    status, text, said = shardlang("init", f"{path}:Two", "--mesh", "dp=2", "--input", "x:f32[4,4]")
    assert status == 0 and "\nloss" not in text
    assert "warning[SH0513]: which output is the loss is not known: `near` and `far` may be" in said


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
    "task as an argument": ("config.json", ("--arg", "task=base"), 1, "--task TASK"),
    "no argument": ("config.json", ("--arg", "width"), 1, "--arg width=64"),
    "argument twice": ("model.py:narrow", ("--arg", "a=1", "--arg", "a=2"), 1, "given twice"),
    "attribute unknown": ("config.json", ("--arg", "depth=3"), 1, "no option `depth`"),
    "task of other models": ("config.json", ("--task", "audio-classification"), 1, "SH0352"),
    "no axis size": ("config.json", ("--mesh", "dp"), 2, "is not an axis and its size"),
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
