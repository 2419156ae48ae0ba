"""Proving the program of a step: its results and gradients are those of the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.capture import Captured, InputSpec, ModelSource, raise_to_float64
from shardlang.compiler.build import Statements, build_graph
from shardlang.compiler.driver import Compiled
from shardlang.ir.graph import op_name
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.ir.step import StepProgram, record
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.passes.step.write_step import write_step
from shardlang.proof.compare import difference
from shardlang.proof.distance import size
from shardlang.proof.draws import with_program_draws
from shardlang.proof.inputs import proof_inputs
from shardlang.proof.reference import Reference, Setting
from shardlang.proof.values import all_values
from shardlang.runtime.simulate_step import StepSimulator


@dataclass(frozen=True, slots=True)
class Subject:
    """What is laid out: a model, its statements, its inputs, and whether it is trained."""

    captured: Captured
    statements: Statements
    source: ModelSource
    inputs: Sequence[InputSpec]
    train: bool = True

    @classmethod
    def of(cls, done: Compiled) -> Subject:
        """That of a compiled spec."""
        return cls(done.captured, done.statements, done.source, done.inputs, done.train)


@dataclass(frozen=True, slots=True)
class Proof:
    """What proving one step gave.

    Attributes:
        errors: by result and by leaf, its largest difference as in `verify`; infinite where the
            program gives no gradient and the model does.
        recorded: by op, how often it is not written out.
    """

    errors: dict[str, float]
    recorded: Counter[str]
    step: StepProgram

    @property
    def worst(self) -> float:
        """The largest difference; one that is no number comes first."""
        return max(self.errors.values(), key=lambda e: (e != e, e), default=0.0)


def prove(subject: Subject, seed: int = 0) -> Proof:
    """Differentiate a program, simulate its step in float64, and compare it with the model."""
    program, reference = laid_out(subject, seed)
    step = write_step(program, reference.trainable, reference.cotangents)
    return proof_of(step, reference)


def proof_of(step: StepProgram, reference: Reference) -> Proof:
    """Simulate a step, and compare it with the model."""
    results, gradients = simulated(step, reference)
    named = [r.name for r in step.results]
    errors = _errors(step, reference.results, dict(zip(named, results, strict=True)))
    wanted = {n: g for n, g in reference.gradients.items() if g is not None}
    errors |= _errors(step, wanted, gradients)
    recorded = Counter(op_name(n.args[0]) for n in step.graph.nodes if n.target is record)
    return Proof(errors, recorded, step)


def laid_out(subject: Subject, seed: int = 0) -> tuple[LocalProgram, Reference]:
    """The program of the model in float64, and what the model itself gives."""
    captured = subject.captured
    raised = raise_to_float64(captured.graph)
    program = to_program(run_passes(build_graph(captured, subject.statements, raised)))
    inputs, _ = proof_inputs(subject.source, subject.inputs, seed)
    values = all_values(captured, subject.source, inputs, seed)
    trained = [leaf.name for leaf in captured.leaves if leaf.trainable and subject.train]
    drawn, _ = with_program_draws(raised, program)
    return program, Reference(Setting(captured, drawn, values, trained, program.loss, seed))


def simulated(
    step: StepProgram, reference: Reference
) -> tuple[list[list[Tensor]], dict[str, list[Tensor]]]:
    """Results and gradients of a step on every device."""
    coords = list(step.mesh.coords())
    layouts = {r.name: r.layout for r in step.results}
    leaves = {
        leaf.name: [shard_of(reference.values[leaf.name], leaf.layout, at).clone() for at in coords]
        for leaf in step.leaves
    }
    given = {
        name: [shard_of(reference.cotangents[name], layouts[name], at) for at in coords]
        for name in step.cotangents
    }
    torch.manual_seed(reference.seed)
    return StepSimulator(step).run(leaves, given)


def _errors(
    step: StepProgram, wanted: dict[str, Tensor], made: dict[str, list[Tensor]]
) -> dict[str, float]:
    """The difference of every value that the model gives, by name."""
    layouts = {one.name: one.layout for one in (*step.results, *step.leaves)}
    coords = list(step.mesh.coords())
    top = max(map(size, wanted.values()), default=0.0)
    found = {n: float("inf") for n, want in wanted.items() if n not in made and bool(want.any())}
    for name, want in wanted.items():
        if name in made:
            found[name] = difference(made[name], want, layouts[name], coords, top)
    return found
