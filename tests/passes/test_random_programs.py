"""Random programs under random layouts: whatever is stated, the numbers are the model's."""

from __future__ import annotations

import random

import pytest
import torch

from shardlang.capture import CallableSource, InputSpec, capture
from shardlang.ir.graph import ShardError
from shardlang.proof.verify import verify
from tests.broad import sampled
from tests.random_programs import MESHES, Program, random_statements


def check(seed: int) -> None:
    """Capture one random program and prove it under three random layouts."""
    rng = random.Random(seed)
    shape = Program(seed).shape
    source = CallableSource(lambda: Program(seed))
    specs = [InputSpec("x", torch.float32, shape)]
    captured = capture(source, specs, lambda name: name.startswith("parts."))
    for trial in range(3):
        mesh = rng.choice(MESHES)
        statements = random_statements(rng, captured, mesh)
        try:
            report = verify(captured, statements, source, specs, seed=trial)
        except ShardError as refused:
            assert refused.code == "SH0403", refused  # a weight and its bias disagree
            continue
        assert report.ok, f"seed {seed}, layout {trial}: {report.first} {report.to_json()}"


@pytest.mark.parametrize("seed", sampled([*range(20), 68], [*range(5), 68]))
def test_random_program(seed: int) -> None:
    check(seed)
