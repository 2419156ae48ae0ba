"""What is left of the process groups when a rank leaves them while it holds its module."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

import shardlang
from shardlang.api import Program
from shardlang.runtime.groups import leave
from tests.runtime.prepared import prepare_step

SPEC = Path(__file__).with_name("tiny.shard")


@functools.cache
def program() -> Program:
    """The spec of this test, compiled."""
    return shardlang.compile(SPEC, sets={"copies": "2"})


def prepare() -> None:
    """Compile it, and its step."""
    prepare_step(program())


def gloo_threads() -> int:
    """How many threads of gloo this process has."""
    tasks = Path("/proc/self/task")
    return sum("gloo" in (one / "comm").read_text() for one in tasks.iterdir())


def counted() -> tuple[int, int]:
    """gloo's threads before and after leaving."""
    module = program().load("cpu")
    rows = torch.arange(20).reshape(5, 4) % 11
    module(**module.shard_inputs(ids=rows, labels=rows))
    before = gloo_threads()
    leave()
    return before, gloo_threads()
