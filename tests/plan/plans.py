"""Compiled specs and their plans, each made once for all tests."""

from __future__ import annotations

import functools
from pathlib import Path

from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.plan import Plan, plan_of
from shardlang.spec import load_spec_text

HERE = Path(__file__).parent

TP = """
mesh { dp = 2 tp = 4 }
model "models.py:block"()
input x : f32[4, 12, 8] [dp, _, _]
param "up.{weight,bias}" [tp, ...]
param "down.weight" [_, tp]
"""
SP = TP.replace("[dp, _, _]", "[dp, tp, _]")
STACK = """
mesh { dp = 2 tp = 4 }
model "models.py:stack"()
input x : f32[4, 12, 8] [dp, _, _]
param "**.up.{weight,bias}" [tp, ...]
param "**.down.weight" [_, tp]
"""
FSDP = """
mesh { replica = 2 shard = 4 }
model "models.py:stack"()
input x : f32[8, 12, 8] [replica*shard, _, _]
store "**" over shard
"""


@functools.cache
def compiled(text: str) -> Compiled:
    """A spec text as a compiled program."""
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    return compile_spec(spec)


@functools.cache
def plan(text: str) -> Plan:
    """The plan of a spec text."""
    return plan_of(compiled(text))
