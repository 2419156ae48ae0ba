"""The whole step of a compiled spec: forward and backward, the update, and microbatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.compiler.accumulate import accumulated, accumulated_step
from shardlang.compiler.driver import Compiled
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram, UpdateProgram
from shardlang.passes.step.write_step import write_step
from shardlang.passes.step.write_update import write_update


@dataclass(frozen=True, slots=True)
class WholeStep:
    """All that a device runs in one step of training.

    Attributes:
        step: forward and backward, of each microbatch where there are several.
        update: the gathers after the update, if some value is kept gathered.
        accumulated: what is done once for all microbatches; None where there is one.
    """

    step: StepProgram
    update: UpdateProgram | None = None
    accumulated: AccumulatedStep | None = None

    @property
    def mesh(self) -> Mesh:
        """The mesh, with the axis of microbatches if it has one."""
        return self.step.mesh


def whole_step(compiled: Compiled, last: str | None = None) -> WholeStep | None:
    """The step that starts at the loss, or at every result where there is none.

    None where nothing is trained: the program is its forward alone.

    Args:
        last: the pass after which it ends; the last of all if not given.

    Raises:
        CompileError: the batch cannot be cut into microbatches.
    """
    program = compiled.program
    ends, trained = differentiable(program), trained_by(compiled)
    if not trained or not ends:
        return None
    update = write_update(program, trained)
    held = update if update.names else None
    stated = compiled.spec.accumulate
    if stated is not None and stated.count > 1 and program.loss:
        several = accumulated_step(accumulated(compiled), last=last)
        return WholeStep(several.main, held, several)
    return WholeStep(write_step(program, trained, starts_of(program), last), held)


def trained_by(compiled: Compiled) -> Sequence[str]:
    """The leaves that a step trains, by name."""
    leaves = compiled.program.leaves if compiled.train else ()
    return [leaf.name for leaf in leaves if leaf.trainable]


def starts_of(program: LocalProgram) -> Sequence[str]:
    """The results that gradients start from: the loss, or all where there is none."""
    ends = differentiable(program)
    return [program.loss] if program.loss is not None and program.loss in ends else ends


def half(graph: fx.Graph, *, backward: bool) -> list[fx.Node]:
    """The nodes of one half of a step, in order."""
    return [n for n in graph.nodes if n.op != "output" and info(n).backward is backward]
