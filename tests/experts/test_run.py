"""Experts routed between four real processes: the losses of the plain model in one process."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.broad import sampled
from tests.commands import ROOT
from tests.runtime.forking import completed

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", sampled(("routed", "gathered"), ("routed",)))
def test_it_trains_as_the_plain_model_does(name: str) -> None:
    spec = str(ROOT / f"examples/moe/{name}.shard")
    command = [sys.executable, "-m", "shardlang", "run", spec, "--steps", "3", "--reference"]
    done = completed(command, {**os.environ, "PYTHONPATH": str(ROOT)}, timeout=240)
    assert done.returncode == 0, done.stderr
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    summary = last["summary"]
    assert len(steps) == 3
    assert summary["devices"] == 4
    assert summary["reference"]["max_difference"] < 1e-5
    assert len({step["loss"] for step in steps}) == 3, "the weights change"
