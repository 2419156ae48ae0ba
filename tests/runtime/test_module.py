"""The sharded module on four processes, every dim uneven, against the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import short
import torch
import whole_model
from spawn import spawn
from tiny import build

from tests.commands import document

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def ran(scratch: Path) -> Results:
    """What every rank found."""
    return spawn("whole_model:everything", 4, scratch, 120, prepared=1, SCRATCH=str(scratch))


@pytest.fixture(scope="module")
def plain(ran: Results) -> dict[str, Any]:
    found: dict[str, Any] = ran[0]["plain"]
    return found


def test_weights_start_equal_under_the_models_own_names(ran: Results, plain: Any) -> None:
    assert sorted(ran[0]["names"]) == sorted(plain["start"])
    for rank in ran:
        assert rank["start"].keys() == plain["start"].keys()
        for name, value in plain["start"].items():
            assert torch.equal(rank["start"][name], value), name
        assert rank["tied"]


def test_forward_returns_the_models_structure(ran: Results, plain: Any) -> None:
    for rank in ran:
        assert rank["structure"] == {"loss": "Tensor", "extra": "tuple"}
        torch.testing.assert_close(rank["loss"], plain["loss"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(rank["logits"], plain["logits"], rtol=1e-5, atol=1e-6)
        assert rank["calls"] == 1


def test_gradients_are_those_of_the_plain_model(ran: Results, plain: Any) -> None:
    for rank in ran:
        assert rank["grads"].keys() == plain["grads"].keys()
        for name, grad in plain["grads"].items():
            torch.testing.assert_close(rank["grads"][name], grad, rtol=1e-5, atol=1e-7, msg=name)


def test_the_norm_counts_every_element_once(ran: Results, plain: Any) -> None:
    for rank in ran:
        torch.testing.assert_close(rank["norm"], plain["norm"], rtol=1e-6, atol=0.0)


def test_compiled_whole_it_gives_the_same(ran: Results, plain: Any) -> None:
    for rank in ran:
        loss, norm = rank["compiled"]
        torch.testing.assert_close(loss, plain["loss"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(norm, plain["norm"], rtol=1e-6, atol=0.0)


def test_training_follows_the_plain_model(ran: Results, plain: Any) -> None:
    for rank in ran:
        for mine, reference in zip(rank["training"], plain["training"], strict=True):
            assert abs(mine.loss - reference.loss) < 1e-5 * abs(reference.loss)
            assert abs(mine.grad_norm - reference.grad_norm) < 1e-4 * reference.grad_norm


def test_short_batches_train_as_the_plain_model_does(ran: Results, plain: Any) -> None:
    wanted = [record.loss for record in plain["short"]]
    assert len(wanted) == len(set(wanted)) == len(short.ROWS)
    for rank in ran:
        assert [record.loss for record in rank["short"]] == pytest.approx(wanted, rel=1e-5, abs=0)


def test_short_batches_are_proven_at_the_declared_size() -> None:
    """The examples are proven in tests/examples."""
    assert document("verify", Path(__file__).with_name("short.shard"))["ok"]


def test_checkpoints_read_back(ran: Results, scratch: Path, plain: Any) -> None:
    for rank in ran:
        assert rank["checkpoints"] == {"dcp": True, "full": True}
    from safetensors.torch import load_file

    assert len(ran[0]["files"]) > 2
    stored = {}
    for name in ran[0]["files"]:
        stored |= load_file(scratch / "weights" / name)
    model = build()
    missing, unexpected = model.load_state_dict(stored, strict=False)
    assert (missing, unexpected) == (["head.weight"], [])
    for name, value in model.named_parameters():
        assert torch.equal(value, plain["start"][name]), name


def test_the_spec_is_as_uneven_as_it_says() -> None:
    program = whole_model.compiled().program
    dims = {leaf.name: [str(dim) for dim in leaf.layout.dims] for leaf in program.leaves}
    assert dims["embed.weight"] == ["11@tp", "6@dp"]
    assert dims["blocks.0.up.bias"] == ["7@tp*dp"]
    assert dims["ids"] == ["5@dp", "4"]
