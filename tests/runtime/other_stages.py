"""A rank of a pipeline whose stage is another program, or that expects other values."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from staged import batch, program

from shardlang.compiler import pipelined
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.errors import RunError
from shardlang.training.staged import _Staged

aten = torch.ops.aten


def prepare() -> None:
    """Compile the spec, but no stages: those differ."""
    program("gpipe, dp")


def refused() -> dict[str, tuple[str, str]]:
    """Code and message where rank 3, which has stage 1 as rank 2 has, differs; the same alike."""
    return {
        "program": _step(lambda: patch.object(pipelined, "staged", _with_another_backward)),
        "link": _step(lambda: patch.object(_Staged, "_shapes", _of_other_types)),
        "alike": _step(nullcontext),
    }


def _step(planted: Callable[[], AbstractContextManager[object]]) -> tuple[str, str]:
    made = program("gpipe, dp")
    made.load()
    with planted() if os.environ["RANK"] == "3" else nullcontext():
        try:
            made.step(batch(0))
        except RunError as error:
            return error.code, error.message
    return "", ""


def _with_another_backward(*given: Any, build: Any = pipelined.staged) -> StagedStep:
    """The derivative of another function in stage 1."""
    made: StagedStep = build(*given)
    nodes = made.stages[1].step.graph.nodes
    node = next(node for node in nodes if node.target is aten.tanh_backward.default)
    node.target = aten.sigmoid_backward.default
    return made


def _of_other_types(staged: _Staged, step: StagedStep, build: Any = _Staged._shapes) -> Any:
    """What is sent of the last microbatch is narrower."""
    *rest, last = build(staged, step)
    return [*rest, {name: (shape, torch.float32) for name, (shape, _) in last.items()}]
