"""The graphs of every example, family and zoo spec, for the tools that go through all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from shardlang.bind import bind
from shardlang.capture import Captured, CaptureError, capture
from shardlang.compiler.build import Statements, build_graph
from shardlang.compiler.driver import (
    CompileError,
    compile_spec,
    input_specs,
    names_of,
    source_of,
    statements_of,
)
from shardlang.compiler.parts import decided
from shardlang.grammar.diagnostics import has_errors
from shardlang.ir.graph import ShardError, ShardGraph
from shardlang.spec import load_spec
from shardlang.spec.types import Spec
from tests.model_zoo.cases import Case
from tests.model_zoo.specs import spec_names, write_spec
from tests.model_zoo.zoo import ZOO

ROOT = Path(__file__).parent.parent
REFUSED = (CaptureError, CompileError, ShardError)
"""What a spec is refused with, when its graph is built or by a pass."""

LARGE = ("70b_64.shard",)
"""Examples of models that take minutes to compile here."""

Build = Callable[[], tuple[ShardGraph, Spec]]
"""Makes the graph that the first pass gets; raises one of `REFUSED`."""


def of_files(folder: str) -> Iterator[tuple[str, Build]]:
    """The specs below a folder of the repository that name a model and can be read."""
    for path in sorted((ROOT / folder).rglob("*.shard")):
        if path.name in LARGE:
            continue
        spec, findings = load_spec(path, {}, need_model=True)
        if spec is not None and not has_errors(findings):
            yield str(path.relative_to(ROOT)), partial(_of_spec, spec)


def _of_spec(spec: Spec) -> tuple[ShardGraph, Spec]:
    compiled = compile_spec(spec, passes=())
    return _in_parts(compiled.captured, compiled.statements, compiled.train), spec


def _in_parts(captured: Captured, statements: Statements, train: bool) -> ShardGraph:
    """The graph before all passes, its mesh in the parts in which it is used."""
    return build_graph(captured, decided(captured, statements, train).statements)


def of_zoo() -> Iterator[tuple[str, Build]]:
    """The specs of all zoo models; a model is traced once for all specs with the same inputs."""
    for case in ZOO:
        traced: dict[object, Captured] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in spec_names(case):
                yield f"zoo/{case.name}/{name}", partial(_of_case, case, name, folder, traced)


def _of_case(
    case: Case, name: str, folder: str, traced: dict[object, Captured]
) -> tuple[ShardGraph, Spec]:
    spec, findings = load_spec(write_spec(case, name, Path(folder)), {}, need_model=True)
    assert spec is not None and not has_errors(findings), findings
    source = source_of(spec)
    inputs = input_specs(spec, source)
    if inputs not in traced:
        traced[inputs] = capture(source, inputs)
    captured = traced[inputs]
    binding, findings = bind(spec, names_of(captured))
    if binding is None:
        raise CompileError(findings)
    statements = statements_of(spec, binding, captured)
    return _in_parts(captured, statements, source.mode == "train"), spec


KINDS: dict[str, Callable[[], Iterator[tuple[str, Build]]]] = {
    "examples": partial(of_files, "examples"),
    "families": partial(of_files, "tests/families"),
    "zoo": of_zoo,
}


def all_specs(only: str | None = None) -> Iterator[tuple[str, Build]]:
    """Every spec by name, or those of one kind."""
    for kind, specs in KINDS.items():
        if only in (None, kind):
            yield from specs()
