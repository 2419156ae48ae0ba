"""`shardlang init --residual`: the stream along the sequence, or along its hidden dim."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.broad import sampled
from tests.commands import ROOT, document, shardlang
from tests.init.test_init import SIZES, plan_of, total_bytes

STATED = {
    "llama": {"model.embed_tokens": ".out", "model.layers.*": ".out"},
    "gpt2": {"transformer.wte": ".out", "transformer.h.*": ".out"},
    "bert": {"bert.embeddings.word_embeddings": ".out", "bert.encoder.layer.*": ".out"},
    "t5": {
        "{encoder,decoder}.embed_tokens": ".out", "encoder.block.*": ".out.0",
        "decoder.block.*": ".out.0",
    },
}  # fmt: skip

PROVEN_HERE = [("gpt2", "sequence"), ("bert", "hidden"), ("t5", "sequence")]
QUICK = PROVEN_HERE[:1]
"""What `make test` compares."""


def config(model: str) -> Path:
    own = ROOT / f"tests/families/{model}/config.json"
    return own if own.exists() else ROOT / f"examples/{model}/{model}.json"


@pytest.mark.parametrize(
    ("model", "residual"),
    sampled(itertools.product(STATED, ("sequence", "hidden")), QUICK),
)
def test_layers_and_embeddings_are_stated(model: str, residual: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    options = ("--mesh", "dp=2,tp=2", "--residual", residual, "-o", path, *SIZES)
    assert document("init", config(model), *options)["percent"] > 90
    split = "[dp, tp, _]" if residual == "sequence" else "[dp, _, tp]"
    text = path.read_text().splitlines()
    lines = [" ".join(line.split()) for line in text if line.startswith("value")]
    assert lines == [f'value "{m}"{selector} {split}' for m, selector in STATED[model].items()]
    assert shardlang("fmt", "--check", path)[0] == 0
    if (model, residual) in PROVEN_HERE:
        assert document("verify", path)["ok"]


BY_HAND = [("sequence", "dp=2,tp=2", "sp.shard"), ("hidden", "x=2,y=2", "gspmd2d.shard")]
MORE = 1.01
"""`init` writes `store`, which is storage at every batch; by hand, the use of a parameter over a
data axis is weighed, which saves 1% at a batch of four."""


@pytest.mark.parametrize(
    ("residual", "mesh", "by_hand"),
    sampled(BY_HAND, BY_HAND[:1]),
)
def test_it_moves_no_more_bytes_than_the_spec_by_hand(
    residual: str, mesh: str, by_hand: str, tmp_path: Path
) -> None:
    path = tmp_path / "spec.shard"
    store = ("--store", "x") if "x=" in mesh else ()
    model = ROOT / "examples/llama/llama.json"
    options = ("--task", "causal-lm", "--residual", residual, *store, *SIZES)
    document("init", model, "--mesh", mesh, "-o", path, *options)
    moved = total_bytes(plan_of(path))
    assert moved <= total_bytes(plan_of(ROOT / "examples/llama" / by_hand)) * MORE


def test_a_model_without_a_stream_is_refused() -> None:
    code, _, err = shardlang("init", config("vit"), "--mesh", "tp=2", "--residual", "hidden")
    assert code == 2
    assert "no stack of layers" in err and "'--residual'" in err
