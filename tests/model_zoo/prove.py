"""Proving the cases of the model zoo."""

from __future__ import annotations

import fnmatch
import math
import time
from dataclasses import dataclass
from pathlib import Path

from shardlang.bind import Binding, bind
from shardlang.capture import Captured, CaptureError, capture
from shardlang.compiler.at_model import at_model
from shardlang.compiler.driver import (
    CompileError,
    input_specs,
    names_of,
    source_of,
    statements_of,
)
from shardlang.grammar.diagnostics import Diagnostic, has_errors
from shardlang.ir.graph import ShardError
from shardlang.proof.report import Report
from shardlang.proof.verify import verify
from shardlang.spec import Spec, load_spec
from tests.model_zoo.cases import Case
from tests.model_zoo.specs import MESHES, spec_names, write_spec

WHOLE = (
    "*position*", "*.wpe.*", "*token_type*", "*rel_embeddings*",
    "*transform*dense*", "*vocab_transform*", "lm_head.dense.*", "*predictions.dense*",
    "head.dense.*", "*embeddings_project*", "*embedding_hidden_mapping_in*",
)  # fmt: skip
"""What is neither attention nor MLP and every case leaves whole: tables of positions and types,
and the projections between embeddings, layers and head."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What proving one spec of a case gave.

    Attributes:
        error: the worst error of loss, outputs and gradients; None where the spec is refused.
        split: the part of the matrices' elements that is split over tp.
        seconds: time of the proof, the first one with capture.
        finding: the diagnostic, where the spec is refused or the proof fails.
    """

    spec: str
    error: float | None
    split: float
    seconds: float
    finding: str = ""
    code: str = ""

    @property
    def ok(self) -> bool:
        """Whether the spec is proven."""
        return not self.finding


def prove_case(case: Case, folder: Path, only: str = "") -> list[Outcome]:
    """Prove every spec of a case; the model is traced once for all with the same inputs.

    Args:
        only: the name of the one spec to prove.
    """
    found: list[Outcome] = []
    traced: dict[object, Captured] = {}
    for name in spec_names(case):
        if only in ("", name):
            start = time.perf_counter()
            spec = _load(write_spec(case, name, folder))
            try:
                outcome = _prove(case, name, spec, traced)
            except (CaptureError, CompileError, ShardError) as failure:
                outcome = _refused(name, failure, spec)
            found.append(_timed(outcome, time.perf_counter() - start))
    return found


def _load(path: Path) -> Spec:
    spec, findings = load_spec(path, {}, need_model=True)
    assert spec is not None and not has_errors(findings), findings
    return spec


def _prove(case: Case, name: str, spec: Spec, traced: dict[object, Captured]) -> Outcome:
    source = source_of(spec)
    inputs = input_specs(spec, source)
    if inputs not in traced:
        traced[inputs] = capture(source, inputs)
    captured = traced[inputs]
    binding, findings = bind(spec, names_of(captured))
    if binding is None or has_errors(findings):
        raise CompileError(findings)
    report = verify(captured, statements_of(spec, binding, captured), source, inputs)
    split = split_part(case, binding, captured) if "tp" in name and name in MESHES else 0.0
    finding = "" if report.ok else f"wrong: {report.first or 'no single value differs first'}"
    return Outcome(name, worst_error(report), split, 0.0, finding)


def worst_error(report: Report) -> float:
    """The worst error of everything compared."""
    errors = [*report.outputs.values(), *(report.gradients or {}).values()]
    return max(errors, key=lambda e: (e != e, e))


def split_part(case: Case, binding: Binding, captured: Captured) -> float:
    """The part of the elements of all matrices that is split over tp; 1 where none is whole."""
    split = total = 0
    for leaf in captured.leaves:
        if leaf.kind != "param" or len(leaf.shape) < 2:
            continue
        if any(fnmatch.fnmatch(leaf.name, pattern) for pattern in (*WHOLE, *case.whole)):
            continue
        bound = binding.params.get(leaf.name)
        axes = {axis.name for axis in bound.layout.sharded} if bound is not None else set()
        total += math.prod(leaf.shape)
        split += math.prod(leaf.shape) if "tp" in axes else 0
    return split / total if total else 0.0


def _refused(name: str, failure: CaptureError | CompileError | ShardError, spec: Spec) -> Outcome:
    """The outcome of a spec that does not compile: its diagnostics in one line."""
    if isinstance(failure, CompileError):
        found = [d for d in failure.diagnostics if d.is_error]
    else:
        found = [at_model(failure, spec)]
    return Outcome(name, None, 0.0, 0.0, "; ".join(map(_line, found)), found[0].code)


def _line(finding: Diagnostic) -> str:
    lines = [label.span for label in finding.labels if label.span.file.endswith(".py")]
    places = [f"model line: {Path(span.file).name}:{span.line}" for span in lines]
    notes = "".join(f" ({note})" for note in (*places, *finding.notes))
    return f"{finding.code} {finding.message}{notes}"


def _timed(outcome: Outcome, seconds: float) -> Outcome:
    return Outcome(
        outcome.spec, outcome.error, outcome.split, seconds, outcome.finding, outcome.code
    )
