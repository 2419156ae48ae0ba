"""The bytes and calls of every example, family and zoo spec, compared with recorded ones.

    python -m tests.bytes_sent --against FILE [--only examples|families|zoo]
    python -m tests.bytes_sent --write FILE

A specification's figures are those of its plan: calls, and bytes that the busiest device sends, by
phase and collective. `--against` prints where they differ and ends with 1 where more is sent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shardlang.bind import bind
from shardlang.capture import Captured, CaptureError, capture
from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import (
    CompileError,
    compile_spec,
    input_specs,
    names_of,
    placements_of,
    source_of,
)
from shardlang.grammar.diagnostics import has_errors
from shardlang.ir.graph import ShardError
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.plan import make_plan, plan_of
from shardlang.plan.totals import totals_of
from shardlang.plan.types import Plan
from shardlang.spec import load_spec
from tests.model_zoo.cases import Case
from tests.model_zoo.specs import spec_names, write_spec
from tests.model_zoo.zoo import ZOO

ROOT = Path(__file__).parent.parent
Figures = dict[str, tuple[int, int]]
"""`forward all_reduce` to (calls, bytes); empty where the spec is refused."""


def figures_of(plan: Plan) -> Figures:
    """What a plan sends, without the collectives that it does not have."""
    totals = totals_of(plan.collectives)
    return {
        f"{phase} {op}": (total.count, total.bytes)
        for phase, ops in totals.items()
        for op, total in ops.items()
        if total.count
    }


def of_files(folder: str) -> Iterator[tuple[str, Figures]]:
    """The figures of the specs below a folder of the repository."""
    for path in sorted((ROOT / folder).rglob("*.shard")):
        spec, findings = load_spec(path, {}, need_model=True)
        name = str(path.relative_to(ROOT))
        if spec is None or has_errors(findings):
            continue
        try:
            yield name, figures_of(plan_of(compile_spec(spec)))
        except CompileError:
            yield name, {}


def of_case(case: Case, folder: Path) -> Iterator[tuple[str, Figures]]:
    """The figures of a zoo model's specs; it is traced once for all with the same inputs."""
    traced: dict[object, Captured] = {}
    for name in spec_names(case):
        try:
            yield f"zoo/{case.name}/{name}", _of_zoo_spec(case, name, folder, traced)
        except (CaptureError, CompileError, ShardError):
            yield f"zoo/{case.name}/{name}", {}


def _of_zoo_spec(case: Case, name: str, folder: Path, traced: dict[object, Captured]) -> Figures:
    spec, findings = load_spec(write_spec(case, name, folder), {}, need_model=True)
    assert spec is not None and not has_errors(findings), findings
    source = source_of(spec)
    inputs = input_specs(spec, source)
    if inputs not in traced:
        traced[inputs] = capture(source, inputs)
    captured = traced[inputs]
    binding, findings = bind(spec, names_of(captured))
    if binding is None:
        raise CompileError(findings)
    graph = run_passes(build_graph(captured, placements_of(spec, binding, captured)))
    return figures_of(make_plan(to_program(graph)))


def of_zoo() -> Iterator[tuple[str, Figures]]:
    """The figures of all zoo models' specs."""
    for case in ZOO:
        with tempfile.TemporaryDirectory() as folder:
            yield from of_case(case, Path(folder))


KINDS = {
    "examples": lambda: of_files("examples"),
    "families": lambda: of_files("tests/families"),
    "zoo": of_zoo,
}


def total(figures: Figures) -> int:
    """All bytes of a spec."""
    return sum(size for _, size in figures.values())


def more_is_sent(name: str, before: Figures, after: Figures) -> bool:
    """Print a spec whose figures differ; whether it sends more, or is refused now."""
    if before == after:
        return False
    worse = total(after) > total(before) or (bool(before) and not after)
    print(f"{'MORE' if worse else 'less'} {name}: {total(before)} -> {total(after)} bytes")
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            print(f"     {key}: {before.get(key, (0, 0))} -> {after.get(key, (0, 0))}")
    return worse


def main() -> int:
    """Write or compare the figures; 1 where a spec sends more than is recorded."""
    parser = argparse.ArgumentParser(prog="python -m tests.bytes_sent", description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", choices=sorted(KINDS))
    options = parser.parse_args()
    found = {
        name: figures
        for kind, figures_of_kind in KINDS.items()
        if options.only in (None, kind)
        for name, figures in figures_of_kind()
    }
    if options.write:
        options.write.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    known = json.loads(options.against.read_text()) if options.against else {}
    recorded = {n: {k: tuple(v) for k, v in figures.items()} for n, figures in known.items()}
    worse = [n for n in found if n in recorded and more_is_sent(n, recorded[n], found[n])]
    new = sorted(found.keys() - recorded.keys()) if options.against else []
    print(
        f"{len(found)} specs, {sum(map(total, found.values()))} bytes; "
        f"{len(worse)} send more, {len(new)} are not recorded"
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
