"""The step of one device as readable Python: functions for its phases, one line an op.

Collectives are calls of their names, and sizes that depend on the device are calls with a printed
dim, such as `size("7@dp")`. All else is what PyTorch calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.pipelined import pipelined
from shardlang.compiler.whole_step import WholeStep, whole_step
from shardlang.grammar.diagnostics import Span, error, start_of_file
from shardlang.graph.code_pieces import order_lines, piece_lines, update_lines
from shardlang.graph.code_stages import stage_lines
from shardlang.graph.code_step import StepCode, parts_of
from shardlang.passes.step.write_step import write_step


def code_of(compiled: Compiled, stage: int | None = None) -> str:
    """The text of a step, the same for every device; of a forward alone if nothing is trained.

    Args:
        stage: of a pipeline, whose stages have texts of their own.

    Raises:
        CompileError: SH0108, a pipeline without a stage, or a stage that there is not.
    """
    if compiled.spec.pipeline is not None:
        return _of_stage(compiled, stage, compiled.spec.pipeline.span)
    if stage is not None:
        place, help = start_of_file(str(compiled.spec.path)), "call `code()` without `stage`"
        raise CompileError([error("SH0108", "the spec has no pipeline", place, help=help)])
    step = whole_step(compiled)
    if step is None:
        return _text(StepCode(write_step(compiled.program, (), ())).forward_alone())
    return _text(_whole(compiled, step))


def _of_stage(compiled: Compiled, stage: int | None, span: Span) -> str:
    """The text of a stage."""
    made = pipelined(compiled)
    count = made.schedule.stages
    if stage is None or not 0 <= stage < count:
        what = "each has a text of its own" if stage is None else f"`{stage}` is none of them"
        message = f"the pipeline has {count} stages, and {what}"
        help = f"give one from 0 to {count - 1}, as in `code(stage=0)`"
        raise CompileError([error("SH0108", message, span, help=help)])
    return _text(stage_lines(compiled, made, stage))


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _whole(compiled: Compiled, step: WholeStep) -> Iterator[str]:
    several = step.accumulated
    parts = dict(parts_of(several.reduce)) if several is not None else {}
    writer = StepCode(step.step, parts)
    yield writer.head()
    if several is not None and several.early.gives:
        yield from ("", *piece_lines("early", several.early, writer.sums()), "")
    yield from ("", *writer.forward())
    yield from ("", "", *writer.backward())
    if several is not None:
        yield from ("", "", *piece_lines("finish", several.finish, writer.sums()))
        yield from ("", "", *piece_lines("reduce", several.reduce, writer.sums()))
    if step.update is not None:
        yield from ("", "", *update_lines(step.update, step.step.leaves))
    yield from ("", "", *order_lines(compiled, step))
