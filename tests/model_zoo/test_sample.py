"""A sample of the model zoo; `python -m tests.model_zoo` proves all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.proof.report import TOLERANCE
from tests.broad import sampled
from tests.model_zoo.prove import prove_case
from tests.model_zoo.results import TABLE, load_results
from tests.model_zoo.specs import MESHES, spec_names
from tests.model_zoo.zoo import ZOO

CASES = {case.name: case for case in ZOO}
SAMPLE = [
    ("cohere", "fsdp2 x tp2"),
    ("electra", "dp2 x tp2"),
    ("t5", "dp2 x tp2"),
    ("convnext", "fsdp4"),
    ("whisper", "fsdp2 x tp2"),
    ("mixtral grouped_mm", "dp2 x ep2"),
    ("mamba2", "dp2 x tp2"),
    ("speech_to_text", "dp2 x tp2"),
    ("residual net", "height 30 over 4"),
    ("U-Net", "height 30 over 4"),
]
QUICK = (("cohere", "fsdp2 x tp2"), ("mamba2", "dp2 x tp2"), ("U-Net", "height 30 over 4"))


@pytest.mark.parametrize(("name", "spec"), sampled(SAMPLE, QUICK))
def test_it_computes_the_same(name: str, spec: str, tmp_path: Path) -> None:
    case = CASES[name]
    (outcome,) = prove_case(case, tmp_path, spec)
    assert outcome.finding == ""
    assert outcome.error is not None and outcome.error <= TOLERANCE
    assert outcome.split > 0.99 or "tp" not in spec


def test_what_cannot_be_traced_is_refused_with_its_line(tmp_path: Path) -> None:
    (outcome,) = prove_case(CASES["wav2vec2 ctc"], tmp_path, "fsdp4")
    assert outcome.code == "SH0354"
    assert "loss_ctc.py:" in outcome.finding


def test_the_zoo_is_large_and_its_results_are_whole() -> None:
    results = load_results()
    assert len(CASES) == len(ZOO) >= 45
    assert {case.kind for case in ZOO} >= {
        "decoder", "encoder", "encoder-decoder", "vision", "speech", "experts", "state space",
    }  # fmt: skip
    for case in ZOO:
        found = results[case.name]
        assert sorted(found) == sorted(spec_names(case)), case.name
        for outcome in found.values():
            assert outcome.code == case.refused.get(outcome.spec, "")
            assert outcome.ok == (outcome.spec not in case.refused)
            assert (outcome.error or 0.0) <= TOLERANCE
            if outcome.ok and "tp" in outcome.spec and outcome.spec in MESHES:
                assert outcome.split > 0.99, case.name


def test_the_table_lists_every_model() -> None:
    text = TABLE.read_text()
    assert [case.name for case in ZOO if f"| {case.name} |" not in text] == []
