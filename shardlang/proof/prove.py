"""Proving a spec: estimate the memory, shrink if asked, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shardlang.capture import CaptureError
from shardlang.compiler.accumulate import accumulated
from shardlang.compiler.at_model import at_model
from shardlang.compiler.driver import Compiled, CompileError, compile_spec
from shardlang.compiler.pipelined import along_stages, schedule_of
from shardlang.compiler.stated import check_stated
from shardlang.grammar.diagnostics import error
from shardlang.grammar.words import counted
from shardlang.ir.graph import ShardError
from shardlang.ir.mesh import Mesh
from shardlang.ir.precision import wider
from shardlang.proof.accumulated import Along
from shardlang.proof.memory import available_bytes, estimate_bytes, readable
from shardlang.proof.report import Report
from shardlang.proof.shrink import check_same_decisions, shrink
from shardlang.proof.shrink_stages import check_same_stages
from shardlang.proof.shrunk import CannotShrink
from shardlang.proof.updates import Recipe
from shardlang.proof.verify import verify


def _silent(_: str) -> None:
    return None


def verify_compiled(
    compiled: Compiled,
    *,
    shrink: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = _silent,
) -> Report:
    """Prove a compiled spec.

    Args:
        shrink: prove a smaller model with the same decisions.
        say: receives a line of progress.

    Raises:
        CompileError: the proof needs too much memory, the model cannot be shrunk, fails on the
            proof's inputs, or cannot be sharded in float64.
    """
    check_stated(compiled)
    cut: tuple[str, ...] = ()
    if shrink:
        compiled, cut = _shrunk(compiled)
        say("cut: " + "; ".join(cut))
    along, compiled = along_of(compiled), _of_one_rank(compiled)
    _check_memory(compiled)
    say(f"simulating {counted(compiled.spec.mesh.devices, 'device')}")
    try:
        report = verify(
            compiled.captured, compiled.statements, compiled.source, compiled.inputs,
            seed=seed, train=compiled.train, recipe=_recipe(compiled), along=along,
        )  # fmt: skip
    except (CaptureError, ShardError) as failure:
        raise CompileError([at_model(failure, compiled.spec)]) from failure
    report.cut, report.devices = list(cut), compiled.spec.mesh.devices
    return report


def _recipe(compiled: Compiled) -> Recipe:
    leaves = compiled.captured.leaves
    master = compiled.program.step.precision.master
    masters = (x.name for x in leaves if wider(x.dtype, master) != x.dtype)
    scaling = compiled.program.step.precision.loss_scale
    scale = None if scaling is None else scaling.first
    return Recipe(compiled.rule, frozenset(masters), scale)


def along_of(compiled: Compiled) -> Along | None:
    """How the step of several microbatches is computed, where the spec has several.

    Raises:
        CompileError: the model cannot be split so, or the schedule does not fit.
    """
    stated = compiled.spec.accumulate
    if stated is None or stated.count == 1 or not compiled.train:
        return None
    if compiled.spec.pipeline is None:
        made = accumulated(compiled)
        return Along(made.captured, made.statements)
    schedule = schedule_of(compiled.spec)
    made = _of_one_rank(along_stages(compiled))
    return Along(made.captured, made.statements, schedule, compiled.spec.pipeline.schedule)


def _of_one_rank(compiled: Compiled) -> Compiled:
    """The same without the axis of a pipeline, along which no tensor lies otherwise.

    Each stage is simulated on the devices of its own rank, so together these are all.
    """
    stated = compiled.spec.pipeline
    if stated is None:
        return compiled
    axes = (axis for axis in compiled.program.mesh.axes if axis.name != stated.axis)
    mesh = Mesh(tuple(axes))
    statements = replace(compiled.statements, mesh=mesh)
    return replace(compiled, statements=statements, program=replace(compiled.program, mesh=mesh))


def _shrunk(large: Compiled) -> tuple[Compiled, tuple[str, ...]]:
    at = large.spec.model.span
    try:
        small = shrink(large.spec, large.source)
        compiled = compile_spec(small.spec)
        check_same_decisions(large.program, compiled.program)
        check_same_stages(large, compiled)
    except CannotShrink as failure:
        help = "prove the whole model, without `--shrink`"
        raise CompileError([error("SH0508", str(failure), at, help=help)]) from failure
    return compiled, small.cut


def _check_memory(compiled: Compiled) -> None:
    need = estimate_bytes(compiled.captured, compiled.program, compiled.train)
    have = available_bytes()
    if need > 0.8 * have:
        raise CompileError(
            [
                error(
                    "SH0507",
                    f"the proof needs about {readable(need)}, and {readable(have)} are free",
                    compiled.spec.model.span,
                    help="prove a smaller model with the same decisions: `--shrink`",
                )
            ]
        )
