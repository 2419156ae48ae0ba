"""Training loops written by hand, on real processes, against the plain model in float64."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import ROOT, spawn

from tests.broad import sampled

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import page  # noqa: E402

Results = list[dict[str, Any]]


def _run(function: str, specs: str, processes: int, out: Path) -> Results:
    return spawn(
        f"habits:{function}", processes, out, 300, prepared=1, SCRATCH=str(out), SPECS=specs,
        PYTHONPATH=f"{ROOT}:{HERE}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every rank of two found."""
    return _run("everything", "tp2 dp2", 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every rank of four found, of all that may depend on how many axes there are."""
    return _run("on_two_axes", "both4 dp4", 4, tmp_path_factory.mktemp("four"))


@pytest.fixture(params=sampled(["two", "four"], ["two"]))
def ran(request: pytest.FixtureRequest) -> Results:
    """What every rank found, of two and of four."""
    found: Results = request.getfixturevalue(request.param)
    return found


def test_every_block_of_the_page_does_what_it_does_to_the_plain_model(ran: Results) -> None:
    for rank in ran:
        for block, found in zip(page.blocks(), rank["page"], strict=True):
            refused = page.REFUSED.match(block)
            assert found == refused[1] if refused else found < 1e-10, block


def test_optimizers_update_as_on_the_plain_model(ran: Results) -> None:
    for rank in ran:
        for name, gap in rank["optimizers"].items():
            assert gap < (1e-2 if name == "Muon" else 1e-10), name


def test_names_order_and_shapes_are_the_models(ran: Results) -> None:
    for rank in ran:
        assert all(rank["names"].values()), rank["names"]


def test_a_checkpoint_resumes_on_every_mesh_and_on_one_process(ran: Results) -> None:
    for rank in ran:
        assert all(gap < 1e-10 for gap in rank["meshes"].values()), rank["meshes"]


def test_replicas_stay_equal_bit_by_bit(ran: Results) -> None:
    for rank in ran[1:]:
        for name, value in ran[0]["replicas"].items():
            assert torch.equal(rank["replicas"][name], value), name


def test_an_infinity_on_one_device_skips_the_step_on_all(two: Results) -> None:
    assert all(rank["infinity"] == (4.0, True) for rank in two)


def test_a_shard_of_another_device_is_refused(two: Results) -> None:
    assert all(rank["elsewhere"] == "SH0622" for rank in two)


def test_shards_that_one_rank_saves_are_said_and_refused(two: Results) -> None:
    for rank in two:
        saved = rank["saved"]
        assert saved["silent"] and saved["spoken"] and saved["copied"]
        assert saved["before"] == saved["after"] == saved["each"] == ("", "")
        for name in ("alone", "half"):
            code, words = saved[name]
            assert code == "SH0622" and "with `torch.save` or under `no_dist`" in words
            assert "`torch.distributed.checkpoint.save`" in words
        code, words = saved["safetensors"]
        assert code == "SH0621" and "full_tensor()" in words


def test_a_broadcast_is_right_or_refused(ran: Results) -> None:
    for rank in ran:
        packed, plain = rank["broadcast"]
        assert packed == "SH0621"
        assert plain < 1e-10


def test_modules_are_initialized_frozen_and_copied_as_the_plain_models(two: Results) -> None:
    for rank in two:
        assert rank["changed"]["initialized by class"] < 1e-10
        assert rank["changed"]["copied without gradients"]


REFUSED = {
    "untied": ("SH0613", "`head.weight` and `embed.weight` are no longer one tensor"),
    "whole": ("SH0613", "`up.weight` is another `Parameter` of [7, 12]"),
    "buffer": ("SH0613", "`seen` is another `Tensor` of [5]"),
    "replaced": ("SH0613", "the module `norm` of the model is another `Identity`"),
    "setting": ("SH0613", "`eps` of `norm` is `0.5`"),
    "parametrized": ("SH0613", "class of `up` is `ParametrizedLinear`"),
    "hook": ("SH0613", "`up` has a hook"),
    "part": ("SH0613", "`up` is called by itself"),
    "shared": ("SH0621", "cannot be shared"),
    "reduced": ("SH0620", "`c10d::allreduce_` does not know"),
    "broadcast": ("SH0620", "gradients are those of the whole batch already"),
    "gathered": ("SH0620", "`p.full_tensor()` gathers"),
    "dual": ("SH0613", "forward-mode"),
    "transformed": ("SH0613", "a transform of `torch.func`"),
    "orthogonal": ("SH0620", "`torch.nn.init.orthogonal_(whole)`, say, then `p.copy_(whole)`"),
}


def test_what_would_have_no_effect_is_refused(two: Results) -> None:
    for rank in two:
        for name, (code, words) in REFUSED.items():
            found, message = rank["refused"][name]
            assert found == code, (name, message)
            assert words in message


APART = {
    **dict.fromkeys(
        ("loaded", "data", "initialized", "states", "gradients"), "`norm.weight` has other"
    ),
    "by hand": "`norm.bias` has other values on rank 1 than on rank 0",
    "buffer": "`seen` has other values on rank 1 than on rank 0",
    "rate": "rank 1 with 1 × a step of `SGD` with lr = 0.2",
    "stepped": "rank 0 with 1 × a step of `SGD` with lr = 0.1",
}


CODES = {"rate": "SH0612", "stepped": "SH0612", "states": "warning", "gradients": "warning"}
"""What a difference is, if not SH0611: a warning where an optimizer may have enlarged rounding."""


def test_what_one_rank_changes_alone_is_found_on_all(two: Results) -> None:
    for rank in two:
        assert len(rank["apart"]) == 16
        for name, (code, words) in rank["apart"].items():
            kind = name.removesuffix(", later")
            assert code == CODES.get(kind, "SH0611"), (name, words)
            assert APART[kind] in words


def test_replicas_may_be_rounded_apart(two: Results) -> None:
    assert all(rank["rounded"] == ("", "nothing was said") for rank in two)


def test_replicas_are_compared_a_few_times(two: Results) -> None:
    assert all(rank["comparisons"] == 5 for rank in two)


def test_other_habits_do_what_they_do_to_the_plain_model(two: Results) -> None:
    for rank in two:
        assert len(rank["more"]) == 15
        assert {name: gap for name, gap in rank["more"].items() if not gap < 1e-10} == {}


def test_gradients_have_memory_of_their_own(two: Results) -> None:
    """Neither two of them share it, nor the program's buffers, nor what a loop gives."""
    for rank in two:
        assert len(rank["memory"]) == 4 and all(rank["memory"].values()), rank["memory"]


def test_a_hook_that_would_see_a_part_of_a_gradient_is_refused(two: Results) -> None:
    for rank in two:
        hooked = rank["hooked"]
        assert hooked.pop("last") == ("", "")
        for name, (code, words) in hooked.items():
            output = "logits" if name == "split" else "hidden"
            assert code == "SH0613" and f"the output `{output}` has a hook, or retains" in words


def test_losses_outside_are_as_on_the_plain_model(ran: Results) -> None:
    """Values and all gradients, metrics, a second head, and outputs given to the next call."""
    for rank in ran:
        assert len(rank["outside"]) == 3
        for found in rank["outside"]:
            assert {name: gap for name, gap in found.items() if not gap < 1e-10} == {}
