"""Proving a model that a test builds, on a small mesh."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from shardlang.capture import CallableSource
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.proof.prove import verify_compiled
from shardlang.proof.report import Report
from shardlang.spec import load_spec_text


def compiled(build: Callable[[], nn.Module], statements: str) -> Compiled:
    """Compile a model under the statements of a spec, without its `model`."""
    spec, found = load_spec_text(f'model "here.py:build"\n{statements}', "here.shard")
    assert spec is not None, found
    return compile_spec(spec, CallableSource(build))


def proof(build: Callable[[], nn.Module], statements: str) -> Report:
    """Prove a model under the statements of a spec, without its `model`."""
    return verify_compiled(compiled(build, statements))
