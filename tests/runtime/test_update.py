"""The update of one device's parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.cost.composition import Kind
from shardlang.cost.meter import Meter
from shardlang.ir.optimizers import ASSUMED, UpdateRule
from shardlang.plan.collect import plan_of
from shardlang.plan.moments import Memory, Phase
from shardlang.runtime import update
from shardlang.runtime.optim import make_optimizer
from shardlang.runtime.update import DeviceUpdate, Part


def test_a_gradient_may_lie_otherwise_than_its_parameter() -> None:
    """Its numbers are taken by their indices, by an optimizer of one kernel too."""
    value = torch.linspace(-1, 1, 60, dtype=torch.float64).view(2, 6, 5)
    given = torch.linspace(-3, 2, 60, dtype=torch.float64).view(2, 5, 6).transpose(1, 2)
    part = Part.of(value.clone(), None, None)
    part.tensor.grad = part.of_gradient(given)
    make_optimizer({"x": part.tensor}, ASSUMED).step()
    plain = nn.Parameter(value.clone())
    plain.grad = given.contiguous()
    torch.optim.AdamW([plain], **ASSUMED.settings, foreach=False).step()
    torch.testing.assert_close(part.tensor, plain, rtol=0, atol=1e-12)


def test_a_master_weight_is_updated_and_given() -> None:
    """What is too small for the narrow type adds up; what is written to the value is taken over."""
    value = torch.linspace(1, 2, 12).bfloat16().view(3, 4)
    part = Part.of(value, None, torch.float32)
    optimizer = make_optimizer({"x": part.tensor}, UpdateRule("sgd", {"lr": 1.0}))
    wide = value.float()
    for _ in range(20):
        part.tensor.grad = part.of_gradient(torch.full((3, 4), 1e-3).bfloat16())
        optimizer.step()
        wide -= torch.full((3, 4), 1e-3).bfloat16().float()
        part.give()
        part.seen = value._version
        part.refresh()
    torch.testing.assert_close(part.tensor.detach(), wide, rtol=1e-6, atol=0)
    assert torch.equal(value, wide.bfloat16())
    value.fill_(3.0)
    part.refresh()
    assert torch.equal(part.tensor, torch.full((3, 4), 3.0))


class Narrow(nn.Module):
    """Parameters in bf16, whose numbers divide over 4 devices, and a count that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(64, 64, bias=False) for _ in range(2))
        self.bfloat16()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.down(torch.tanh(self.up(x))).float().square().mean()}


def test_an_update_copies_few_gradients_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, or both: the numbers are the same, to the bit."""
    path = tmp_path / "spec.shard"
    path.write_text("mesh { dp = 1 }\ninput x : bf16[16, 64] [dp, _]\n")
    made = shardlang.compile(path, model=Narrow).local
    leaves = [leaf for leaf in made.leaves if leaf.trainable]
    one = 64 * 64 * 4

    def updated(most: int) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(update, "COPIED_BYTES", most)
        torch.manual_seed(0)
        values = {leaf.name: torch.randn(64, 64).bfloat16() for leaf in leaves}
        parts = DeviceUpdate(leaves, values, made.mesh, {"dp": 0}, torch.float32)
        optimizer = make_optimizer(parts.named, ASSUMED)
        for _ in range(2):
            gradients = {name: torch.randn(64, 64).bfloat16() for name in values}
            parts.load(gradients)
            norm = parts.squares().sqrt()
            want = torch.stack([x.double().norm() for x in gradients.values()]).norm()
            torch.testing.assert_close(norm, want, rtol=1e-5, atol=0)
            parts.clip(norm, 0.5)
            with Meter() as meter:
                parts.step(optimizer)
            assert not any(x.grad is not None for x in parts.tensors)
        return [x.detach() for x in parts.tensors], meter.peak

    (few, low), (all_, high) = updated(one), updated(2 * one)
    assert all(torch.equal(a, b) for a, b in zip(few, all_, strict=True))
    assert one <= low < 1.5 * one and 2 * one <= high < 2.5 * one


STORES = {
    "": (2, 2, 2, 12),
    'store optimizer "**" over dp': (2, 2, 2 / 4, 12 / 4),
    'store gradients "**" over dp': (2, 2 / 4, 2 / 4, 12 / 4),
    'store "**" over dp': (2 / 4, 2 / 4, 2 / 4, 12 / 4),
}
"""Bytes for each parameter under `accumulate`: its own, those of its gradient between microbatches
and at rest, behind the last one, and those of its states."""


@pytest.mark.parametrize("microbatches", [2, 3])
@pytest.mark.parametrize("store", STORES)
def test_bytes_are_those_of_the_formulas(tmp_path: Path, store: str, microbatches: int) -> None:
    memory = _narrow_memory(tmp_path, f"accumulate {microbatches} {store}")
    forwards = [moment for moment in memory.moments if moment.phase is Phase.FORWARD]
    between = forwards[-1].held[Kind.GRADIENTS]
    states = memory.optimizer_bytes - 4 * 2
    found = memory.params_bytes, between, memory.gradients_bytes, states
    assert found == tuple(bytes_ * 2 * 64 * 64 for bytes_ in STORES[store])


@pytest.mark.parametrize("store", STORES)
def test_one_microbatch_leaves_the_same_at_rest(tmp_path: Path, store: str) -> None:
    memory = _narrow_memory(tmp_path, store)
    states = memory.optimizer_bytes - 4 * 2
    params, _, *rest = (bytes_ * 2 * 64 * 64 for bytes_ in STORES[store])
    assert [memory.params_bytes, memory.gradients_bytes, states] == [params, *rest]


def _narrow_memory(folder: Path, statements: str) -> Memory:
    """Of a step of two parameters of 64 x 64, whose steps AdamW counts in 4 bytes each."""
    path = folder / "spec.shard"
    text = "mesh { dp = 4 }\ninput x : bf16[48, 64] [dp, _]\nprecision { master = f32 }\n"
    path.write_text(f"{text}{statements}\n")
    return plan_of(shardlang.compile(path, model=Narrow).compiled).memory


@pytest.mark.parametrize("fault", ["give", "held"])
def test_a_master_weight_that_is_not_written_back_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "spec.shard"
    text = "mesh { dp = 4 }\ninput x : bf16[16, 64] [dp, _]\nprecision { master = f32 }\n"
    path.write_text(text + ('store optimizer "**" over dp\n' if fault == "held" else ""))
    made = shardlang.compile(path, model=Narrow)
    assert made.verify().ok
    if fault == "give":
        monkeypatch.setattr(Part, "give", lambda self: None)
    else:
        old = lambda self: self.cut(self.value) if self.cut is not None else self.value  # noqa: E731
        monkeypatch.setattr(Part, "narrowed", old)
    report = made.verify()
    assert not report.ok and report.updates and max(report.updates.values()) > 1e-6
