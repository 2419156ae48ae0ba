"""A sample of what `init` writes for the zoo; `python -m tests.model_zoo --init` proves it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from shardlang.proof.report import TOLERANCE
from tests.broad import broad, sampled
from tests.model_zoo.init import REFUSED, arguments, meshes_of, prove_written, run
from tests.model_zoo.init_table import load_written
from tests.model_zoo.results import TABLE
from tests.model_zoo.zoo import ZOO

CASES = {case.name: case for case in ZOO}
SAMPLE = [
    ("gpt_neox", "fsdp=2,tp=2"),
    ("electra", "dp=2,tp=2"),
    ("convnext", "fsdp=4"),
    ("wav2vec2", "dp=2,tp=2"),
    ("olmoe", "dp=2,tp=2"),
    ("qwen3_moe", "dp=2,ep=2"),
    ("U-Net", "dp=2,tp=2"),
]
QUICK = (("convnext", "fsdp=4"), ("U-Net", "dp=2,tp=2"))


@pytest.mark.parametrize(("name", "mesh"), sampled(SAMPLE, QUICK))
def test_the_written_spec_verifies_as_it_stands(name: str, mesh: str, tmp_path: Path) -> None:
    one = prove_written(CASES[name], mesh, tmp_path)
    assert one.finding == ""
    assert one.error is not None and one.error <= TOLERANCE
    assert (one.percent is None) == ("tp" not in mesh)
    assert one.percent is None or one.percent >= 90


@broad
def test_fewer_heads_than_devices_are_split_over_the_axis(tmp_path: Path) -> None:
    """Two heads of keys and values on four devices: two devices hold each of them."""
    one = prove_written(CASES["llama"], "dp=2,tp=4", tmp_path)
    (path,) = tmp_path.glob("*.shard")
    text = path.read_text()
    assert "dims" not in text and "tp = 4" in text
    assert 'param "model.layers.*.self_attn.{q,k,v}_proj.weight" [tp, _]' in text
    assert one.ok and one.error is not None and one.error <= TOLERANCE and one.percent == 100


@broad
def test_heads_that_do_not_divide_it_are_cut_where_too_little_else_is_split(tmp_path: Path) -> None:
    """Of three heads of keys and values on four devices, the keys suffice for 90%."""
    llama = CASES["llama"]
    assert isinstance(llama.model, Mapping)
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3}
    case = dataclasses.replace(llama, model={**llama.model, **heads})
    one = prove_written(case, "dp=2,tp=4", tmp_path)
    (path,) = tmp_path.glob("*.shard")
    _, marked, rest = path.read_text().partition("# Also split, with reshards beside them\n")
    assert marked and rest.startswith('param "model.layers.*.self_attn.k_proj.weight" [tp, _]')
    assert "# Matrices left whole over tp: model.layers.*.self_attn.v_proj.weight" in rest
    assert one.ok and one.error is not None and one.error <= TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused(name: str, tmp_path: Path) -> None:
    one = prove_written(CASES[name], "dp=2,tp=2", tmp_path)
    assert one.code == REFUSED[name]
    assert one.finding.count("SH") == 1


def test_an_implementation_that_reads_data_is_told_with_another(tmp_path: Path) -> None:
    words = arguments(CASES["mixtral eager"], tmp_path)
    (finding,) = run("init", *words, "--mesh", "dp=2,tp=2")["diagnostics"]
    assert 'add `experts_implementation = "grouped_mm"`' in finding["help"]
    more = ("--arg", "experts_implementation=grouped_mm")
    assert run("init", *words, "--mesh", "dp=2,tp=2", *more)["ok"]


def test_the_results_are_whole() -> None:
    results = load_written()
    for case in ZOO:
        found = results[case.name]
        assert sorted(found) == sorted(meshes_of(case)), case.name
        for one in found.values():
            assert one.code == REFUSED.get(case.name, "")
            assert one.ok == (case.name not in REFUSED)
            assert (one.error or 0.0) <= TOLERANCE
            assert one.percent is None or one.percent >= 90, case.name


def test_the_page_shows_every_result() -> None:
    text = TABLE.read_text().partition("## Specs that `init` writes")[2]
    assert [case.name for case in ZOO if f"\n| {case.name} |" not in text] == []
    assert "not run" not in text
