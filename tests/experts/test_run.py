"""Experts routed between four real processes: the losses of the plain model in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["routed", "gathered"])
def test_it_trains_as_the_plain_model_does(name: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "shardlang", "run", str(ROOT / f"examples/moe/{name}.shard"),
            "--steps", "3", "--reference",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    summary = last["summary"]
    assert len(steps) == 3
    assert summary["devices"] == 4
    assert summary["reference"]["max_difference"] < 1e-5
    assert len({step["loss"] for step in steps}) == 3, "the weights change"
