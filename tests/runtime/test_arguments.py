"""Arguments of the Python API that mean nothing are refused in words, at the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("seed", ["x", 1.5, None, True])
def test_a_seed_is_a_whole_number(program: Program, seed: Any) -> None:
    for call in (program.load, program.verify, program.trainer):
        with pytest.raises(TypeError, match=r"`seed` is .*: give a whole number"):
            call(seed=seed)


def test_what_evaluates_is_an_evaluating(program: Program) -> None:
    with pytest.raises(TypeError, match="`evaluating` is 3: give an `Evaluating`"):
        program.trainer(evaluating=3)  # type: ignore[arg-type]


def test_what_is_exported_is_a_loaded_module(program: Program, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`module` is 'm': give the module that"):
        program.export("m", tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [[1], 3, {"ids": [1, 2]}])
def test_example_inputs_are_tensors_by_name(given: Any) -> None:
    with pytest.raises(TypeError, match=r"`example_inputs` is .*: give a dict of whole tensors"):
        shardlang.compile(TINY, example_inputs=given)
