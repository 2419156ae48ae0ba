"""Training in the types that a spec states: the plain model with the same casts, step by step."""

from __future__ import annotations

import json
from typing import Any

import precise
import pytest
import torch
from precision_on_ranks import CASES, STEPS, computes, dtype_of, program
from spawn import spawn

from shardlang.ir.precision import LossScale
from shardlang.plan.collect import plan_of
from shardlang.runtime import loss_scale
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.training.recipe import recipe_of
from shardlang.training.run import plain_trainee

MIXED = {
    "dropped": "the spec states a `loss_scale`, and the loss of these gradients was not scaled",
    "one of two": "the spec states a `loss_scale`, and one of the losses of these gradients was"
    " not scaled",
    "let go": "",
    "twice": "the loss is scaled already",
    "number": "the loss is a float, no tensor",
}
"""What is said of losses that are scaled in part, or not as a loss is."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return spawn("precision_on_ranks:everything", 2, tmp_path_factory.mktemp("ranks"), 300)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_plain_model(ran: list[Any], name: str) -> None:
    """Losses, parameters and master weights; the step that overflows changes nothing anywhere."""
    model, stated = CASES[name]
    scaled = "loss_scale" in stated
    parts = 6 if "accumulate" in stated else 2
    plain = precise.Plain(model(), computes(name), parts, scaled)
    before: list[torch.Tensor] = []
    for step in range(STEPS):
        loss = plain.step(precise.batch(step, dtype_of(name))["x"])
        for trained, _ in ran:
            found = trained[name]
            assert found["losses"][step] == pytest.approx(loss, rel=1e-3)
            for mine, want in zip(found["params"][step], plain.masters, strict=True):
                torch.testing.assert_close(mine, want.detach().to(mine.dtype), rtol=1e-3, atol=1e-6)
            assert found["skipped"][step] == (scaled and step == precise.OVERFLOWS)
            assert found["scales"][step] == (plain.scaler.get_scale() if scaled else None)
            if found["skipped"][step]:
                assert all(map(torch.equal, found["params"][step], before))
        before = ran[0][0][name]["params"][step]
    first = precise.batch(0, dtype_of(name))["x"].to(plain.compute)
    then = plain.model(first)["loss"].item()
    for trained, _ in ran:
        assert trained[name]["then"] == pytest.approx(then, rel=1e-3)
        for mine, want in zip(trained[name]["masters"], plain.masters, strict=True):
            assert mine.dtype is torch.float32
            torch.testing.assert_close(mine, want.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_what_is_sent_and_held_is_what_is_planned(ran: list[Any], name: str) -> None:
    """The bytes of every call in the types that are stated, and the peak of live bytes."""
    rows = list(plan_of(program(name).compiled).calls())
    each = zip(*(trained[name]["sent"] for trained, _ in ran), strict=True)
    assert [max(bytes_) for bytes_ in each] == [row.bytes // row.count for row in rows]
    if "accumulate" not in CASES[name][1]:
        planned, measured = zip(*(trained[name]["peak"] for trained, _ in ran), strict=True)
        assert set(planned) == {max(measured)}


def test_a_loop_of_ones_own_scales_its_loss(ran: list[Any]) -> None:
    for trained, found in ran:
        step = trained["f16"]
        assert found["losses"] == step["losses"]
        assert all(map(torch.equal, found["params"], step["params"][-1]))
        assert found["saved"] == found["loaded"] == step["scales"][-1] == 2.0**15
        assert (found["unscaled"], found["plain"]) == ("SH0643", "SH0642")
        assert found["mixed"] == MIXED


@pytest.mark.parametrize("name", ["bf16", "f16", "f32, in f16"])
def test_the_reference_of_a_run_is_trained_so(name: str) -> None:
    """The plain model on one process: the same casts, and a step that is skipped and gone over."""
    compiled = program(name).compiled
    plain = precise.Plain(CASES[name][0](), computes(name), 1, "loss_scale" in CASES[name][1])
    given = [precise.batch(step, dtype_of(name)) for step in range(STEPS)]
    records = list(Trainer(plain_trainee(compiled, 0), given, recipe_of(compiled)).steps(STEPS))
    want = [plain.step(one["x"]) for one in given]
    assert [record.loss for record in records] == pytest.approx(want, rel=1e-4)
    skipped = [record.step - 1 for record in records if record.skipped]
    assert skipped == ([] if name == "bf16" else [precise.OVERFLOWS])
    assert [json.loads(json.dumps(r.as_json())).get("skipped", False) for r in records] == [
        record.skipped for record in records
    ]


def test_the_factor_follows_the_rule_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "INTERVAL", 3)
    stated, settings = LossScale(8.0), loss_scale.first_settings(LossScale(8.0))
    scale, steps = torch.tensor(8.0), torch.tensor(0, dtype=torch.int32)
    for finite in (True, True, True, True, False, True, False, True, True, True):
        loss_scale.note_step(settings, stated, finite)
        torch._amp_update_scale_(scale, steps, torch.tensor(float(not finite)), 2.0, 0.5, 3)
        assert settings == {"loss_scale": scale.item(), "finite_steps": steps.item()}
    fixed = loss_scale.first_settings(LossScale(8.0, dynamic=False))
    loss_scale.note_step(fixed, LossScale(8.0, dynamic=False), False)
    assert fixed["loss_scale"] == 8.0
