"""Specs on real processes in float64: all that is proven is what runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.broad import sampled
from tests.commands import ROOT
from tests.real import ranks
from tests.real.jobs import TOLERANCE, run_all
from tests.real.processes import RankError, forked, wait
from tests.real.ranks import gap
from tests.real.subjects import from_spec
from tests.runtime.spawn import in_two_jobs

FURTHER = {
    "blocks", "blocks_traded", "complex_stored", "experts_one", "experts_stored",
    "gated_packed", "gated_plain", "heads", "heads_few", "heads_few_keys", "heads_in_parts",
    "heads_three_axes", "heads_ulysses", "mlp_dropout", "mlp_empty", "mlp_partial",
    "mlp_partial_bias", "mlp_sequence", "mlp_stored", "mlp_tensor", "mlp_three_axes",
    "picture_channels", "picture_tiles", "rows_short", "rows_short_fast", "running", "scaled",
    "shifts", "shifts_three_axes", "words_data", "words_positions", "words_split_logits",
    "words_stored",
}  # fmt: skip
"""Specs that take no step that no other one takes: `make prove` runs them."""
SPECS = [
    path
    for path in sorted(Path(__file__).with_name("specs").glob("*.shard"))
    if path.stem not in FURTHER
]
RANDOM = range(210, 212)
NAMES = [*(path.stem for path in SPECS), *map("random {}".format, RANDOM)]
BROAD = {
    "dtypes", "gated_permuted", "mlp_dropout_fast", "results", "running_stored",
    "words_tied", "random 211",
}  # fmt: skip
"""Of those, what `make test` leaves to `make broad`."""

FEW = [name for name in NAMES if name not in BROAD]
Ran = Callable[[str], list[dict[str, Any]]]
STEPS = (
    "all_gather S I", "all_gather S R", "all_reduce I I", "all_reduce P I", "all_reduce P R",
    "all_to_all S S", "collect S S", "dispatch S S", "permute S S", "reduce_scatter P S",
    "settle R I", "slice I S", "slice R S", "to_partial I P", "vary I R", "vary together",
)  # fmt: skip


@pytest.fixture(scope="module")
def ran_with() -> Ran:
    """What came of every spec that runs together with one."""
    return in_two_jobs(NAMES, FEW, _run)


def _run(names: list[str]) -> list[dict[str, Any]]:
    """What comes of these."""
    (seed,) = (n for n in RANDOM if f"random {n}" in names)
    specs = [str(path) for path in SPECS if path.stem in names]
    command = [sys.executable, "-m", "tests.real", "--json", *specs]
    command += ["--random", "1", "--seed", str(seed)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(names), done.stderr
    return found


@pytest.mark.parametrize("name", sampled(NAMES, FEW))
def test_it_runs_as_the_plain_model_does(name: str, ran_with: Ran) -> None:
    (found,) = (each for each in ran_with(name) if Path(each["name"]).stem == name)
    assert not found["error"], found["error"]
    assert found["wrong"] == 0, (found["first"], found["worst"])
    assert found["compared"] >= (12 if "random" not in name else 1)


def test_the_sample_takes_every_step(ran_with: Ran) -> None:
    outcomes = ran_with(FEW[0])
    taken = {step for found in outcomes for step in found["steps"]}
    assert taken >= set(STEPS)
    assert sum(found["devices"] == 8 for found in outcomes) >= 4


def test_what_differs_is_named() -> None:
    spec = str(Path(__file__).with_name("specs") / "gated_packed.shard")
    with mock.patch.object(ranks, "RATE", 0.051):
        (found,) = run_all({"other": (from_spec, spec, {})}, steps=2, jobs=1, timeout_s=240)
    assert not found.ok
    assert found.first == "step 1, `gate_up.weight` after the step"
    assert found.wrong > 2


def test_a_rank_that_fails_is_named_with_its_traceback(tmp_path: Path) -> None:
    def fails() -> None:
        raise ValueError("lost a row")

    pids = {forked(fails, tmp_path / "1"): 1, forked(lambda: time.sleep(60), tmp_path / "0"): 0}
    numbers = list(pids)
    with pytest.raises(RankError, match=r"rank 1 failed:\n(?s:.*)ValueError: lost a row"):
        wait(pids, tmp_path, time.monotonic() + 30)
    assert_gone(numbers)


def test_a_rank_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    pids = {forked(lambda: time.sleep(60), tmp_path / "0"): 0}
    numbers, began = list(pids), time.monotonic()
    with pytest.raises(RankError, match="rank 0 hangs"):
        wait(pids, tmp_path, time.monotonic() + 0.5)
    assert time.monotonic() - began < 20
    assert_gone(numbers)


def assert_gone(pids: list[int]) -> None:
    """That no such process is left."""
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_differences_see_every_kind_of_number() -> None:
    nan, inf = float("nan"), float("inf")
    want = torch.tensor([1.0, nan, inf, -2.0], dtype=torch.float64)
    near = torch.tensor([1.0 + 1e-12, nan, inf, -2.0], dtype=torch.float64)
    assert 0 < gap(near, want, 0.0) < TOLERANCE
    for other in ([1.0, 0.0, inf, -2.0], [1.0, nan, -inf, -2.0], [nan, nan, inf, -2.0]):
        assert gap(torch.tensor(other, dtype=torch.float64), want, 0.0) == inf
    assert gap(want.float(), want, 0.0) == inf
    assert gap(want[:3], want, 0.0) == inf
    assert gap(torch.tensor([True]), torch.tensor([False]), 0.0) == inf
    assert gap(torch.tensor([2]), torch.tensor([2]), 0.0) == 0.0
