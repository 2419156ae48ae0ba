"""The live bytes of a step are those that the eager executor really has, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardlang
from shardlang.api import Program
from shardlang.cost.live import peak_bytes
from tests.cost.measured import measured_peak, step_of
from tests.runtime.spawn import spawn

EXAMPLES = Path(__file__).parents[2] / "examples"

ALONE = {
    "llama": ("llama/llama.json", "causal-lm", "input_ids, labels : i64[4, 20] [d, _]"),
    "gpt2": ("gpt2/gpt2.json", "causal-lm", "input_ids, labels : i64[4, 20] [d, _]"),
    "bert": ("bert/bert.json", "masked-lm",
             "input_ids, attention_mask, labels : i64[4, 20] [d, _]"),
    "vit": ("vit/vit.json", "image-classification",
            "pixel_values : f32[4, 3, 32, 32] [d, ...]\ninput labels : i64[4] [d]"),
    "mixtral": ("moe/mixtral.json", "causal-lm", "input_ids, labels : i64[7, 16] [d, _]"),
    "t5": ("t5/t5.json", "seq2seq-lm",
           "input_ids : i64[4, 20] [d, _]\ninput labels : i64[4, 12] [d, _]"),
}  # fmt: skip
"""Configuration, task and inputs of models that run on one device."""


def on_one_device(name: str, folder: Path) -> Program:
    """A model as it is, on a mesh of one device."""
    config, task, inputs = ALONE[name]
    path = folder / f"{name}.shard"
    path.write_text(
        f'mesh {{ d = 1 }}\nmodel hf("{EXAMPLES / config}", task = "{task}", mode = "train")\n'
        f"input {inputs}\n"
    )
    return shardlang.compile(path)


@pytest.mark.parametrize("name", ALONE)
def test_the_peak_is_the_measured_one(name: str, tmp_path: Path) -> None:
    program = on_one_device(name, tmp_path)
    assert peak_bytes(step_of(program)) == measured_peak(program)


def test_the_peaks_between_devices_are_the_measured_ones(tmp_path: Path) -> None:
    """Of every spec, the predicted and the measured peak of each device."""
    for found in spawn("live_on_ranks:peaks", 4, tmp_path, 240, prepared=1):
        assert found["predicted"] == found["measured"]
