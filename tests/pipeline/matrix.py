"""Every family on every mesh under every schedule: `python -m tests.pipeline.matrix`.

A row for each. What is shared by the schedules of as many stages is compiled once: the program in
float64 and the plain model. Then the stages run in the order of each schedule. Loss, gradients, and
parameters and states after two updates must be those of the plain model, to 1e-9.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardlang.capture import raise_to_float64
from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import SCHEDULES, schedule_of
from shardlang.ir.pipeline.kinds import STAGES_OF_RANK
from shardlang.ir.program import LocalProgram
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.proof.accumulated import SimulatedAccumulation
from shardlang.proof.inputs import proof_inputs
from shardlang.proof.prove import along_of
from shardlang.proof.reference import Reference, Setting
from shardlang.proof.updates import ADAMW, compare_updates
from shardlang.proof.values import all_values
from shardlang.spec.types import Spec
from tests.pipeline.families import FAMILIES, Family
from tests.pipeline.proving import compiled_family

MESHES = (
    "pp = 2", "pp = 4", "pp = 2, tp = 2", "pp = 2, dp = 2, tp = 2", "pp = 2, fsdp = 2",
)  # fmt: skip
LIMIT = 1e-9


@dataclass(frozen=True, slots=True)
class Row:
    """The largest errors of one family on one mesh under one schedule."""

    family: str
    mesh: str
    schedule: str
    step: float
    updates: float

    @property
    def ok(self) -> bool:
        """Whether the pipeline computes what the plain model computes."""
        return self.step <= LIMIT and self.updates <= LIMIT

    def __str__(self) -> str:
        where = f"{self.family:8} {self.mesh:22} {self.schedule:16}"
        verdict = "ok" if self.ok else "WRONG"
        return f"{where} step {self.step:.1e}  updates {self.updates:.1e}  {verdict}"


def ranks_of(mesh: str) -> int:
    """The size of `pp`."""
    return int(mesh.split(",")[0].split("=")[1])


def rows(family: Family, mesh: str, schedules: Sequence[str]) -> Iterator[Row]:
    """The rows of some schedules; those of as many stages share what they can."""
    for each in sorted({STAGES_OF_RANK[name] for name in schedules}):
        names = [name for name in schedules if STAGES_OF_RANK[name] == each]
        with tempfile.TemporaryDirectory() as folder:
            layers = max(4, each * ranks_of(mesh))
            compiled = compiled_family(Path(folder), family, mesh, names[0], layers=layers)
            program, reference = program_of(compiled), reference_of(compiled)
            for name in names:
                found = errors(program, reference, with_schedule(compiled.spec, name, each))
                yield Row(family.name, mesh, name, *found)


def with_schedule(spec: Spec, name: str, virtual: int) -> Spec:
    """A spec with another schedule of as many stages."""
    assert spec.pipeline is not None
    return replace(spec, pipeline=replace(spec.pipeline, schedule=name, virtual=virtual))


def program_of(compiled: Compiled) -> LocalProgram:
    """The program along the microbatches in float64, every op of which has a stage."""
    along = along_of(compiled)
    assert along is not None
    raised = raise_to_float64(along.captured.graph)
    return to_program(run_passes(build_graph(along.captured, along.statements, raised)))


def reference_of(compiled: Compiled) -> Reference:
    """The plain model in float64."""
    captured = compiled.captured
    inputs, _ = proof_inputs(compiled.source, compiled.inputs, 0)
    values = all_values(captured, compiled.source, inputs, 0)
    trained = [leaf.name for leaf in captured.leaves if leaf.trainable]
    graph = raise_to_float64(captured.graph)
    loss = compiled.program.loss
    return Reference(Setting(captured, graph, values, trained, loss, 0))


def errors(program: LocalProgram, reference: Reference, spec: Spec) -> tuple[float, float]:
    """The largest differences under the schedule of a spec, of a step and after two updates."""
    run = SimulatedAccumulation(program, reference, schedule_of(spec))
    step, updates = run.differences(), compare_updates(program, reference, run, ADAMW)
    return max(step.values()), max(updates.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each cell; 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, action="append", default=[])
    parser.add_argument("--mesh", choices=MESHES, action="append", default=[])
    parser.add_argument("--schedule", choices=SCHEDULES, action="append", default=[])
    given, wrong, count = parser.parse_args(arguments), 0, 0
    begin = time.monotonic()
    for mesh in given.mesh or MESHES:
        for name in given.family or FAMILIES:
            for made in rows(FAMILIES[name], mesh, given.schedule or list(SCHEDULES)):
                print(made, flush=True)
                wrong, count = wrong + (not made.ok), count + 1
    print(f"{count - wrong} of {count} are proven, in {time.monotonic() - begin:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
