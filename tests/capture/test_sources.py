"""Models from Python files and configurations, and what is said when they do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardlang.capture import (
    CallableSource,
    CaptureError,
    HfSource,
    InputSpec,
    PythonSource,
    capture,
    make_inputs,
)
from shardlang.capture.nest import leaves, named_call, nest
from shardlang.ir.node import info
from tests.capture.compare import module, run_both, targets
from tests.zoo import bert, llama, tokens, vit

MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from layers_beside import Tower

@dataclass
class Scores:
    score: torch.Tensor
    parts: list

class Model(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.user, self.item = Tower(width), Tower(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, user, item, batch=None):
        u, v = self.user(user), self.dropout(self.item(item))
        score = (u * v).sum(-1)
        if batch is not None:
            score = score - batch["labels"]["click"] * batch["weights"][1]
        return Scores(score, [u, (v,)])

def build(width=4, dropout=0.1):
    return Model(width, dropout)

def with_data(width=4):
    data = [{"user": torch.ones(2, width), "item": torch.ones(2, width)}]
    return Model(width, 0.0), data

def number():
    return 3

def broken():
    raise RuntimeError("no such thing")

def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield {"user": torch.randn(2, 4, generator=generator)}
"""
LAYERS = """
from torch import nn
class Tower(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(width, 5), nn.ReLU(inplace=True))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "two_tower.py").write_text(MODEL)
    (tmp_path / "layers_beside.py").write_text(LAYERS)
    (tmp_path / "unrunnable.py").write_text("import torch\nx = 1 / 0\n")
    return tmp_path


def floats(*names: str, shape: tuple[int, ...] = (6, 4)) -> list[InputSpec]:
    return [InputSpec(name, torch.float32, shape) for name in names]


NESTED = [
    *floats("user", "item"),
    *floats("batch.labels.click", "batch.weights.0", "batch.weights.1", shape=(6,)),
]


def test_python_file(folder: Path) -> None:
    """Keyword arguments, nested inputs and a nested result, under their own names."""
    source = PythonSource("two_tower.py:build", {"dropout": 0.3}, folder)
    captured = capture(source, NESTED, lambda name: name in ("user", "item", "dropout"))
    assert [r.name for r in captured.results] == ["score", "parts.0", "parts.1.0"]
    assert [leaf.name for leaf in captured.leaves if leaf.kind == "input"] == [
        s.name for s in NESTED
    ]
    assert run_both(source, captured, NESTED).error() < 1e-6
    assert captured.value("user", "out").name == "relu"
    assert captured.value("dropout", "in").name == "relu_1"
    assert captured.value("user", "in", "input").name == "user"


def test_call_and_result_are_the_models_own(folder: Path) -> None:
    source = PythonSource("two_tower.py:build", {}, folder)
    captured = capture(source, NESTED)
    flat = make_inputs(source, NESTED, 0)
    nested = nest(flat)
    assert nested["batch"]["weights"][1] is flat["batch.weights.1"]
    rest = {"item": nested["item"], "batch": nested["batch"]}
    bound = dict(leaves(named_call(captured.forward_names, [nested["user"]], rest)))
    assert bound.keys() == flat.keys() and all(bound[k] is flat[k] for k in flat)
    result: Any = captured.rebuild_output([1, 2, 3])
    assert (result.score, result.parts) == (1, [2, (3,)])
    with pytest.raises(CaptureError, match="`user` by position and by name"):
        named_call(captured.forward_names, [flat["user"]], nested)


def test_mode(folder: Path) -> None:
    """Dropout is off in eval mode; `mode` reaches only functions that ask for it."""
    source = PythonSource("two_tower.py:build", {"mode": "eval"}, folder)
    captured = capture(source, floats("user", "item"))
    assert not [n for n in captured.graph.nodes if "dropout" in n.name]


def test_data(folder: Path) -> None:
    stream = PythonSource("two_tower.py:build", {}, folder).batches(3)
    again = PythonSource("two_tower.py:build", {}, folder).batches(3)
    assert stream is not None and again is not None
    assert torch.equal(next(stream)["user"], next(again)["user"])
    assert CallableSource(lambda: nn.Linear(2, 2)).batches(0) is None


def test_data_from_the_build_function(folder: Path) -> None:
    path = folder / "two_tower.py"
    path.write_text(path.read_text().replace("def batches", "def other"))
    given = PythonSource("two_tower.py:with_data", {}, folder).batches(3)
    assert given is not None and [batch["user"].shape for batch in given] == [(2, 4)]


def test_batches_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text("def batches(seed): return 3")
    with pytest.raises(CaptureError, match=r"batches of `count\.py` are a `int`") as caught:
        PythonSource("count.py:build", {}, tmp_path).batches(3)
    assert caught.value.code == "SH0351"


class Summed(nn.Module):
    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.stack(parts).sum(0)


def test_any_number_of_arguments_are_declared_one_by_one() -> None:
    source = CallableSource(Summed)
    captured = capture(source, floats("parts.0", "parts.1"))
    assert [leaf.name for leaf in captured.leaves] == ["parts.0", "parts.1"]
    with pytest.raises(CaptureError, match="`parts` is declared as one") as caught:
        capture(source, floats("parts"))
    assert caught.value.code == "SH0353" and "`parts.0`" in caught.value.help


@pytest.mark.parametrize(
    ("target", "kwargs", "code", "message"),
    [
        ("absent.py:build", {}, "SH0350", "there is no file"),
        ("unrunnable.py:build", {}, "SH0350", "ZeroDivisionError"),
        ("two_tower.py:absent", {}, "SH0351", "defines no function `absent`"),
        ("two_tower.py", {}, "SH0351", "does not name a function"),
        ("two_tower.py:number", {}, "SH0351", "returns a `int`"),
        ("two_tower.py:build", {"widht": 3}, "SH0351", "unexpected keyword argument 'widht'"),
        ("two_tower.py:broken", {}, "SH0352", "no such thing"),
        ("two_tower.py:build", {"mode": "test"}, "SH0352", "no mode `test`"),
    ],
)
def test_unusable_files(
    folder: Path, target: str, kwargs: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(PythonSource(target, kwargs, folder), floats("user", "item"))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"task": "causal"}, "SH0352", "no task `causal`"),
        ({"task": 3}, "SH0352", "no task `3`"),
        ({"task": "image-classification"}, "SH0352", "do not do `image-classification`"),
        ({}, "SH0352", "does not say which model class"),
        ({"task": "causal-lm", "num_layer": 3}, "SH0352", "has no option `num_layer`"),
        ({"task": "causal-lm", "num_attention_heads": 5}, "SH0352", "cannot be built"),
    ],
)
def test_unusable_options(tmp_path: Path, options: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(HfSource(llama().write(tmp_path), **options), llama().inputs)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("{", "is not JSON"),
        ("[]", "not a model configuration"),
        ('{"model_type": 3}', "not a model configuration"),
        ('{"model_type": "lama"}', "knows no model type `lama`"),
    ],
)
def test_unusable_configurations(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CaptureError, match=message) as caught:
        capture(HfSource(path, task="causal-lm"), llama().inputs)
    assert caught.value.code == "SH0350"


def test_infinities_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    limit = {"__float__": "Infinity"}
    path.write_text(json.dumps({"model_type": "mamba2", "time_step_limit": [0.0, limit]}))
    assert list(HfSource(path, task="causal-lm").config().time_step_limit) == [0.0, math.inf]


def test_architectures_name_the_class(tmp_path: Path) -> None:
    family = llama()
    family.config["architectures"] = ["LlamaForCausalLM"]
    assert capture(HfSource(family.write(tmp_path)), family.inputs).results[0].name == "loss"


def test_the_text_part_of_a_configuration_of_several(tmp_path: Path) -> None:
    """A class for text alone gets the text's part, and options that only this has change it."""
    text = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    layers = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "vocab_size": 64}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen3_5", "text_config": {**text, **layers}}))
    config = HfSource(path, task="causal-lm", num_hidden_layers=2).build().config
    assert (config.model_type, config.num_hidden_layers) == ("qwen3_5_text", 2)
    with pytest.raises(CaptureError, match="has no option `num_hiden_layers`"):
        HfSource(path, task="causal-lm", num_hiden_layers=2).build()


def test_fewer_layers_cut_what_is_said_of_each(tmp_path: Path) -> None:
    family = llama()
    family.config["model_type"] = "qwen3"
    family.config["num_hidden_layers"] = 4
    family.config["layer_types"] = ["full_attention", "sliding_attention"] * 2
    config = HfSource(family.write(tmp_path), task="causal-lm", num_hidden_layers=3).build().config
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_layers_skipped_at_random_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "vocab_size": 50}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "layerdrop": 0.1}
    path.write_text(json.dumps({"model_type": "opt", **sizes, **layers}))
    with pytest.raises(CaptureError) as caught:
        capture(HfSource(path, task="causal-lm"), llama().inputs)
    assert caught.value.code == "SH0354"
    assert "`layerdrop = 0.1`" in caught.value.help and "add `layerdrop = 0.0`" in caught.value.help
    assert HfSource(path, task="causal-lm", layerdrop=0.0).advice == ""
    assert HfSource(path, task="causal-lm", mode="eval").advice == ""


def test_misnamed_inputs(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CaptureError, match="takes no input `input_id`") as caught:
        capture(llama().source(tmp_path), tokens(2, 3, "input_id"))
    assert caught.value.code == "SH0353" and "`input_ids`" in caught.value.help
    plain = PythonSource("two_tower.py:build", {}, folder)
    with pytest.raises(CaptureError, match="needs an input `item`"):
        capture(plain, floats("user"))
    with pytest.raises(CaptureError, match="takes no input `useer`"):
        capture(plain, floats("useer", "item"))


def branches(self: Any, x: torch.Tensor) -> Any:
    if self.lin(x).sum() > 0:
        return x.sum()
    return self.lin(x).sum()


def reads(self: Any, x: torch.Tensor) -> Any:
    return self.lin(x) * x.max().item()


def selects(self: Any, x: torch.Tensor) -> Any:
    return self.lin(x)[x > 0].sum()


def misshapes(self: Any, x: torch.Tensor) -> Any:
    return self.lin(x.t()).sum()


@pytest.mark.parametrize(
    ("forward", "code"),
    [(branches, "SH0354"), (reads, "SH0354"), (selects, "SH0354"), (misshapes, "SH0355")],
)
def test_untraceable(forward: Any, code: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One error with the model's own line, and nothing else on the terminal."""
    with pytest.raises(CaptureError) as caught:
        capture(CallableSource(module(forward)), floats("x", shape=(8, 6)))
    line = forward.__code__.co_firstlineno + 1
    assert (caught.value.code, caught.value.source) == (code, f"test_sources.py:{line}")
    assert capfd.readouterr() == ("", "")


def test_a_batch_norm_that_counts_its_batches() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        return self.part(self.lin(x)).sum()

    averages = module(forward, part=lambda: nn.BatchNorm1d(6, momentum=None))
    with pytest.raises(CaptureError) as caught:
        capture(CallableSource(averages), floats("x", shape=(8, 6)))
    assert caught.value.code == "SH0354" and "`momentum=0.1`" in caught.value.help


def test_unsupported_parameters() -> None:
    lazy = CallableSource(module(branches, part=lambda: nn.LazyLinear(3)))
    with pytest.raises(CaptureError, match=r"`part\.weight` has no shape yet") as caught:
        capture(lazy, floats("x", shape=(8, 6)))
    assert caught.value.code == "SH0356"

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(6).to_sparse())

    with pytest.raises(CaptureError, match="`w` is sparse") as caught:
        capture(CallableSource(Sparse), [])
    assert caught.value.code == "SH0356"


def test_missing_values(tmp_path: Path) -> None:
    captured = capture(llama().source(tmp_path), llama().inputs, lambda name: "self_attn" in name)
    assert info(captured.value("model.layers.0.self_attn", "out")).module.endswith("o_proj")
    with pytest.raises(CaptureError, match="is several tensors") as caught:
        captured.value("model.layers.0.self_attn", "in")
    assert "`.in.hidden_states`, " in caught.value.help
    with pytest.raises(CaptureError, match="does not exist"):
        captured.value("model.layers.0.self_attn", "out", "7")
    with pytest.raises(CaptureError, match="holds no tensor"):
        captured.value("model.norm", "out")


def test_random_inputs(tmp_path: Path) -> None:
    """Valid ranges; ignored labels and masked positions in unequal numbers per row."""
    source = bert().source(tmp_path)
    specs = tokens(4, 10, "input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")
    inputs = make_inputs(source, specs, 0)
    assert inputs["input_ids"].max() < 83 and inputs["token_type_ids"].unique().tolist() == [0, 1]
    assert inputs["attention_mask"].sum(1).unique().numel() == 4
    assert (inputs["labels"] == -100).sum(1).unique().numel() == 4
    assert (inputs["labels"] != -100).any(1).all()
    assert inputs["position_ids"][3].tolist() == list(range(10))
    assert torch.equal(inputs["labels"], make_inputs(source, specs, 0)["labels"])
    assert not torch.equal(inputs["input_ids"], make_inputs(source, specs, 1)["input_ids"])
    images = make_inputs(vit().source(tmp_path), vit().inputs, 0)
    assert images["labels"].max() < 7 and images["labels"].min() >= 0
    few = InputSpec("ids", torch.int32, (50,), below=3)
    drawn = make_inputs(CallableSource(nn.Identity), [few], 0)["ids"]
    assert drawn.dtype is torch.int32 and drawn.unique().tolist() == [0, 1, 2]


def test_decode_with_a_cache(tmp_path: Path) -> None:
    """Past keys and values go in and longer ones come out, under dotted names."""
    source = llama().source(tmp_path, mode="eval")
    past = [
        InputSpec(name, torch.float32, (3, 2, 9, 6))
        for name in source.input_names()
        if name.startswith("past_key_values.")
    ]
    specs = [*tokens(3, 1, "input_ids"), *past]
    captured = capture(source, specs)
    names = ["logits", *(spec.name for spec in past)]
    assert [spec.name for spec in past[:2]] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [r.name for r in captured.results] == names
    runs = run_both(source, captured, specs)
    assert runs.graph[1].shape == (3, 2, 10, 6)
    assert runs.error() < 1e-6
    assert targets(captured).count("cat.default") == 2 * 2 + 2 * 2 + 1
    result = captured.rebuild_output(runs.graph)
    assert result.past_key_values.layers[1].values is runs.graph[4]
    given = nest({s.name: torch.ones(1) for s in specs})
    cache = source.arguments({s.name: torch.ones(s.shape) for s in specs})[1]["past_key_values"]
    passed = {"input_ids": given["input_ids"], "past_key_values": cache}
    bound = dict(leaves(passed))
    assert bound.keys() == {spec.name for spec in specs}
