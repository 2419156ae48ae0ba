"""Initial weights: deterministic, one tensor at a time, and the same as the plain model's."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardlang.capture import (
    CallableSource,
    CaptureError,
    HfSource,
    ModelSource,
    capture,
    load_plain,
    materialize,
)
from shardlang.capture.deferred import state
from tests.zoo import FAMILIES, gpt2, llama, qwen2, tokens, vit


def stored(source: ModelSource, seed: int) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of the plain model."""
    return dict(state(load_plain(source, seed)))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_plain_model_has_the_same_weights(family: Any, tmp_path: Path) -> None:
    source = family.source(tmp_path)
    assert equal(materialize(source, 5), stored(source, 5))


def test_seed_decides(tmp_path: Path) -> None:
    source = llama().source(tmp_path)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = (materialize(source, seed) for seed in (5, 5, 6))
    assert equal(first, second)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_values_follow_the_models_own_initialization(tmp_path: Path) -> None:
    """GPT-2 scales residual projections down by the depth; norms are one, biases zero."""
    values = materialize(gpt2().source(tmp_path, n_layer=8, n_embd=60), 0)
    ratio = (
        values["transformer.h.0.attn.c_proj.weight"].std() / values["transformer.wte.weight"].std()
    )
    assert float(ratio) == pytest.approx(1 / 4, rel=0.1)
    assert torch.equal(values["transformer.ln_f.weight"], torch.ones(60))
    assert not values["transformer.h.3.mlp.c_fc.bias"].any()


def test_layers_differ(tmp_path: Path) -> None:
    values = materialize(vit().source(tmp_path), 0)
    weights = [v for k, v in values.items() if k.endswith("mlp.fc1.weight")]
    assert len(weights) == 2 and not torch.equal(*weights)


def test_only_the_selected_part_is_kept(tmp_path: Path) -> None:
    source = llama().source(tmp_path)
    full = materialize(source, 5)
    half = materialize(source, 5, lambda name, t: t[: t.shape[0] // 2])
    for name, part in half.items():
        assert torch.equal(part, full[name][: len(part)])
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    source = qwen2().source(tmp_path)
    assert "lm_head.weight" not in materialize(source, 5)
    plain = load_plain(source, 5)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    leaf = capture(source, qwen2().inputs).leaf("lm_head.weight")
    assert (leaf.name, leaf.aliases) == ("model.embed_tokens.weight", ("lm_head.weight",))


class Odd(nn.Module):
    """Initialization that reads data, writes views, and copies from one parameter to another."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(5, 3))
        nn.init.orthogonal_(self.a)
        self.b = nn.Parameter(self.a.detach().t().clone() * 2)
        self.c = nn.Embedding(7, 3, padding_idx=2)
        self.wide = nn.Parameter(nn.init.orthogonal_(torch.empty(2, 4)))
        self.d = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        rates = torch.linspace(0, 0.3, 4)
        self.rates = [float(r) for r in rates]
        self.register_buffer("table", torch.arange(12.0).view(3, 4).cumsum(0), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.a.data = self.a.data * 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.a @ self.b + self.d.sum() + self.table.sum() + self.rates[1]).sum()


def test_constructors_may_compute() -> None:
    source = CallableSource(Odd)
    values = materialize(source, 9)
    assert source.deferred.recorded, source.deferred.reason
    assert equal(values, stored(CallableSource(Odd), 9))
    assert torch.allclose(values["a"].t() @ values["a"], 9 * torch.eye(3), atol=1e-5)
    assert torch.allclose(values["b"] * 1.5, values["a"].t(), atol=1e-6)
    assert not values["c.weight"][2].any() and values["c.weight"][1].all()
    assert values["d"].tolist() == [1, 2, 3]
    assert torch.allclose(values["wide"] @ values["wide"].t(), torch.eye(2), atol=1e-5)
    assert values.keys() == {"a", "b", "c.weight", "d", "steps", "wide"}
    assert source.deferred.module.rates[3] == pytest.approx(0.3)
    assert torch.equal(source.deferred.value(source.deferred.module.table), Odd().table)


class Looks(nn.Module):
    """Initialization that depends on what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))
        while self.w.max() < 1:
            self.w = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w).sum()


def test_unrecordable_constructors_run_for_real() -> None:
    source = CallableSource(Looks)
    values = materialize(source, 9)
    assert not source.deferred.recorded
    assert float(values["w"].max()) >= 1
    assert equal(values, stored(CallableSource(Looks), 9))


def save(source: HfSource, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Save a plain model as a checkpoint and return its tensors."""
    model: Any = load_plain(source, 7)
    model.save_pretrained(folder, **options)
    return dict(state(model))


@pytest.mark.parametrize("shard", ["5GB", "20kB"])
def test_checkpoint(shard: str, tmp_path: Path) -> None:
    """One file or several with an index; the seed does not matter."""
    folder = tmp_path / "saved"
    values = save(qwen2().source(tmp_path), folder, max_shard_size=shard)
    assert (folder / "model.safetensors.index.json").exists() == (shard == "20kB")
    loaded = HfSource(folder, task="causal-lm")
    assert equal(materialize(loaded, 1), values)
    assert equal(stored(loaded, 2), values)


def test_checkpoint_of_the_base_model(tmp_path: Path) -> None:
    """A head that the checkpoint lacks keeps its initial value, with a warning."""
    folder = tmp_path / "saved"
    values = save(HfSource(vit().write(tmp_path), task="base"), folder)
    loaded = HfSource(folder, task="image-classification")
    with pytest.warns(UserWarning, match="lacks 2 tensors: classifier"):
        found = materialize(loaded, 1)
    body = {k.removeprefix("vit."): v for k, v in found.items() if k.startswith("vit.")}
    assert body and all(torch.equal(values[k], v) for k, v in body.items())


def test_a_checkpoint_with_separate_experts_is_converted(tmp_path: Path) -> None:
    """The file holds every expert's matrices apart, the model holds them stacked."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.MixtralConfig(
        vocab_size=32, num_hidden_layers=1, num_key_value_heads=1, num_local_experts=3, **sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    found = materialize(HfSource(tmp_path, task="causal-lm"), 0)
    assert equal(found, dict(state(model)))
    assert any(name.endswith("experts.gate_up_proj") for name in found)


def test_checkpoint_of_another_shape(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save(llama().source(tmp_path), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 90}))
    with pytest.raises(CaptureError, match=r"\[90, 36\] in the model and \[87, 36\]") as caught:
        materialize(HfSource(folder, task="causal-lm"), 0)
    assert caught.value.code == "SH0359"


def test_unreadable_checkpoint(tmp_path: Path) -> None:
    llama().write(tmp_path).rename(tmp_path / "config.json")
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CaptureError, match="cannot be read"):
        materialize(HfSource(tmp_path, task="causal-lm"), 0)


def test_large_models_need_no_memory(tmp_path: Path) -> None:
    """Two layers and the embeddings of Llama 70B, 3.5e9 parameters, trace in little memory."""
    family = llama()
    source = family.source(
        tmp_path,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        dtype="bfloat16",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    captured = capture(source, tokens(8, 4096, "input_ids", "labels"))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(torch.Size(leaf.shape).numel() for leaf in captured.leaves) > 3.5e9
    assert captured.leaf("lm_head.weight").dtype is torch.bfloat16
    assert captured.constants["model.rotary_emb.inv_freq"][1] == pytest.approx(0.8659643)
    assert grown_kib < 500 * 1024


class Converted(nn.Module):
    """A module that changes its own type, in sizes that no other test makes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(37, 53)
        self.to(torch.float64)


def test_a_constructor_that_converts_its_tensors_is_recorded_each_time() -> None:
    """The first build fills the caches of fake tensors, from which a later one takes."""
    sources = [CallableSource(Converted) for _ in range(4)]
    values = [materialize(source, 5) for source in sources]
    assert [source.deferred.reason for source in sources] == [""] * 4
    assert all(equal(values[0], other) for other in values[1:])
    assert values[0]["up.weight"].dtype is torch.float64
