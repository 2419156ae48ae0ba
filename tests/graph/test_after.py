"""`shardlang graph --after`: the graph's text after a pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.passes.graph_text import read_graph
from shardlang.passes.pipeline import PIPELINE
from shardlang.passes.step.write_step import NAMES
from tests.commands import ROOT, document, shardlang

SPEC = ROOT / "examples/megatron_mlp/mlp.shard"


@pytest.mark.parametrize("after, first", [
    ("normalize", "graph"), ("lower", "graph split"), ("type_gradients", "graph labelled"),
    (PIPELINE[-1].name, "program"),
])  # fmt: skip
def test_the_text_after_a_pass(after: str, first: str) -> None:
    status, out, err = shardlang("graph", SPEC, "--after", after)
    assert (status, err, out.splitlines()[0]) == (0, "", first)
    assert [leaf.name for leaf in read_graph(out).leaves][-1] == "target"


@pytest.mark.parametrize("after", NAMES)
def test_the_text_of_the_step_after_a_pass(after: str) -> None:
    status, out, err = shardlang("graph", SPEC, "--after", after)
    assert (status, err, out.splitlines()[0]) == (0, "", "step")
    started = "all_reduce_start = start all_reduce[tp](linear_1) in activations" in out
    assert started == (after == "schedule")
    assert "backward\ncotangent_0 = gradient" in out and '\ngradients "up.weight" ' in out


def test_of_several_microbatches_one_is_printed(tmp_path: Path) -> None:
    spec = tmp_path / "x.shard"
    spec.write_text(f'use "{SPEC}"\naccumulate 3\n')
    _, out, _ = shardlang("graph", spec, "--after", "differentiate", "--long")
    assert "mesh microbatch = 3, dp = 2, tp = 2" in out and ' in "up" line "mlp.py:' in out
    assert 'gradients "part 0" ' in out


def test_the_document_holds_the_text() -> None:
    found = document("graph", SPEC, "--after", "bind_rules", "--long")
    assert found["after"] == "bind_rules"
    assert (
        'linear = linear(x, p_up_weight, p_up_bias) : f32[6, 5, 90] in "up" line' in found["text"]
    )


def test_it_works_where_a_later_pass_refuses(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Linear(4, 6)\n"
    )
    spec = tmp_path / "m.shard"
    spec.write_text(
        'mesh { tp = 2 }\nmodel "m.py:build"()\ninput input : f32[5, 4] [_, _]\n'
        'param "weight" [_, tp]\nparam "bias" [tp]\n'
    )
    assert "SH0403" in shardlang("graph", spec)[2]
    status, out, _ = shardlang("graph", spec, "--after", "align_units")
    assert status == 0 and "linear = linear(input_1, p_weight, p_bias) : f32[5, 6]" in out


@pytest.mark.parametrize("args, said", [
    (("--after", "fuse"), f"'fuse' is none of normalize, {PIPELINE[0].name}, "),
    (("--after", "fuse"), ", localize, differentiate, recompute, regather, schedule"),
    (("--after", "lower", "--stage", "traced"), "--stage belongs to a picture"),
    (("--after", "lower", "-o", "x.dot"), "--output belongs to a picture"),
    (("--long",), "--long belongs to --after"),
])  # fmt: skip
def test_what_does_not_go_together(args: tuple[str, ...], said: str) -> None:
    status, _, err = shardlang("graph", SPEC, *args)
    assert status == 2 and said in err
