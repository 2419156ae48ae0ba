"""Arguments of the Python API that mean nothing are refused in words, at the call."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardlang
from shardlang.api import Program

TINY = Path(__file__).with_name("tiny.shard")


@pytest.fixture(scope="module")
def program() -> Program:
    return shardlang.compile(TINY)


def test_a_stage_is_a_number(program: Program) -> None:
    with pytest.raises(TypeError, match="`stage` is 'a': give the number of a stage"):
        program.code(stage="a")  # type: ignore[arg-type]


def test_batches_can_be_iterated_over(program: Program) -> None:
    with pytest.raises(TypeError, match="`batches` is 5: give an iterable of dicts"):
        program.trainer(5)  # type: ignore[arg-type]
