"""A `Spec` in the making: what the resolvers of the statements fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shardlang.grammar.diagnostics import Diagnostic, Label, Span
from shardlang.grammar.patterns import Pattern
from shardlang.grammar.tree import Group, LearningRate, RandomMode
from shardlang.ir.step_options import NO_OPTIONS, StepOptions
from shardlang.spec.scope import Scope
from shardlang.spec.types import (
    AccumulateDecl,
    CheckpointDecl,
    DataDecl,
    EvaluateDecl,
    Expectation,
    InputDecl,
    LayoutDecl,
    LossDecl,
    ModelRef,
    OptimizerDecl,
    PeakDecl,
    PipelineDecl,
    PrecisionDecl,
    RecomputeDecl,
    StoreDecl,
    ValueDecl,
)


@dataclass(slots=True)
class Draft:
    """The facts resolved so far."""

    scope: Scope
    folder: Path = Path()
    model: ModelRef | None = None
    inputs: dict[str, InputDecl] = field(default_factory=dict)
    params: list[LayoutDecl] = field(default_factory=list)
    buffers: list[LayoutDecl] = field(default_factory=list)
    values: list[ValueDecl] = field(default_factory=list)
    outputs: list[LayoutDecl] = field(default_factory=list)
    loss: LossDecl | None = None
    data: DataDecl | None = None
    stores: list[StoreDecl] = field(default_factory=list)
    optimizer: OptimizerDecl | None = None
    groups: list[tuple[Group, tuple[tuple[Pattern, Span], ...]]] = field(default_factory=list)
    schedule: LearningRate | None = None
    evaluate: EvaluateDecl | None = None
    random: RandomMode = "exact"
    accumulate: AccumulateDecl | None = None
    pipeline: PipelineDecl | None = None
    microbatches: AccumulateDecl | None = None
    precision: PrecisionDecl = field(default_factory=PrecisionDecl)
    checkpoint: CheckpointDecl | None = None
    step: StepOptions = NO_OPTIONS
    peaks: dict[str, PeakDecl] = field(default_factory=dict)
    recomputes: list[RecomputeDecl] = field(default_factory=list)
    expects: list[Expectation] = field(default_factory=list)
    stated: dict[tuple[str, str], Span] = field(default_factory=dict)

    def state(self, kind: str, key: str, span: Span) -> None:
        """Note that a fact is stated; an earlier statement of it is overridden."""
        earlier = self.stated.pop((kind, key), None)
        if earlier is not None and earlier != span:
            self.scope.report(overridden(f"{kind} {key}".strip(), earlier, span))
        self.stated[(kind, key)] = span


def overridden(what: str, earlier: Span, later: Span) -> Diagnostic:
    """The note that a later statement takes the place of an earlier one."""
    return Diagnostic(
        "SH0223",
        "note",
        f"`{what}` is overridden by a later statement",
        earlier,
        (Label(later, "this one is in force"),),
    )
