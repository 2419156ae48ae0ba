"""Every fault that is planted in a pipeline is found by `verify`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from shardlang.ir.leaf import Leaf
from shardlang.ir.node import info
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.proof import accumulated
from shardlang.proof import verify as verifying
from shardlang.proof.accumulated import SimulatedAccumulation
from shardlang.proof.prove import verify_compiled
from shardlang.proof.report import Report
from shardlang.runtime import simulate_stages
from shardlang.runtime.simulate import PerDevice
from shardlang.runtime.simulate_accumulated import add_up_parts
from shardlang.runtime.simulate_stages import StagedSimulator
from tests.pipeline.families import Family
from tests.pipeline.proving import compiled_family


class Tied(nn.Module):
    """A table that is tied to the head, a skip over all layers, and a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        first = x = self.table(ids)
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        scores = (x * first) @ self.table.weight.T
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten())}


TIED = Family("tied", Tied, "input ids, labels : i64[8, 5] below 9 [ROWS, _]", "")
TABLE = "table.weight"


def report_of(folder: Path, schedule: str = "1f1b") -> Report:
    """The report of four stages."""
    return verify_compiled(compiled_family(folder, TIED, "pp = 4", schedule))


def wrong(errors: Mapping[str, float] | None) -> set[str]:
    """What differs."""
    return {name for name, error in (errors or {}).items() if not error <= 1e-9}


def test_without_a_fault_all_is_proven(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert report.ok, report
    assert report.accumulated and report.updates and {"calls", TABLE} <= report.accumulated.keys()
    assert "of 4 stages on 4 ranks" in str(report) and not wrong(report.updates)
    stated = {"schedule": "1f1b", "stages": 4, "ranks": 4, "microbatches": 8}
    assert report.to_json()["pipeline"] == stated


def late(is_late: Callable[[fx.Node], bool]) -> Callable[..., None]:
    """A send that gives to a microbatch what the one before it was to have."""
    before: dict[tuple[str, int], PerDevice] = {}

    def send(
        self: StagedSimulator, values: PerDevice, stage: int, microbatch: int, node: fx.Node
    ) -> None:
        given = before.get((node.name, stage), values) if is_late(node) else values
        before[node.name, stage] = values
        self._values.setdefault((stage, microbatch), {})[node.name] = given

    return send


def test_a_gradient_for_another_microbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StagedSimulator, "_send", late(lambda node: info(node).backward))
    found = wrong(report_of(tmp_path).accumulated)
    assert {"layers.0.weight", "layers.5.weight", TABLE} <= found
    assert not {"loss", "layers.6.weight", "layers.7.weight"} & found


def test_a_value_of_another_microbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StagedSimulator, "_send", late(lambda node: not info(node).backward))
    report = report_of(tmp_path)
    assert not report.ok and "loss" in wrong(report.accumulated)


@pytest.mark.parametrize("times", [0, 2])
def test_a_tied_gradient_that_counts_otherwise_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    def add(into: dict[str, PerDevice], values: Mapping[str, PerDevice], *rest: object) -> None:
        for _ in range(times if TABLE in values else 1):
            add_up_parts(into, values, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(simulate_stages, "add_up_parts", add)
    assert wrong(report_of(tmp_path).accumulated) == {TABLE}


class Stale(SimulatedAccumulation):
    """Copies of tied parameters keep their first value."""

    first: ClassVar[dict[str, PerDevice]] = {}

    def _held(self, leaf: Leaf, updated: Mapping[str, PerDevice]) -> PerDevice:
        if leaf.tied is None:
            return super()._held(leaf, updated)
        return self.first.setdefault(leaf.name, super()._held(leaf, {}))


def test_a_stale_copy_of_a_tied_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "SimulatedAccumulation", Stale)
    monkeypatch.setattr(Stale, "first", {})
    report = report_of(tmp_path)
    assert list(Stale.first) == [f"{TABLE}@3"]
    assert not report.ok and not wrong(report.accumulated)
    assert {TABLE, "layers.0.weight"} <= wrong(report.updates)


def planted(monkeypatch: pytest.MonkeyPatch, change: Callable[[StagedStep], StagedStep]) -> None:
    """Let the step be changed before it is simulated."""
    made = accumulated.staged
    monkeypatch.setattr(accumulated, "staged", lambda *given: change(made(*given)))


@pytest.mark.parametrize(("stage", "field"), [(0, "gives"), (3, "returns")])
def test_a_missing_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, field: str
) -> None:
    def change(step: StagedStep) -> StagedStep:
        one, name = step.stages[stage], next(iter(getattr(step.stages[stage], field)))
        less = replace(one, **{field: {**getattr(one, field), name: ()}})
        return replace(step, stages=(*step.stages[:stage], less, *step.stages[stage + 1 :]))

    planted(monkeypatch, change)
    report = report_of(tmp_path)
    assert not report.ok and "which was not sent" in report.not_compared


def test_a_stage_whose_gradients_are_not_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, lambda step: replace(step, reduces=step.reduces[:2] + step.reduces[3:]))
    found = wrong(report_of(tmp_path, "zb_h1").accumulated)
    assert found == {f"layers.{i}.{part}" for i in (4, 5) for part in ("weight", "bias")}
