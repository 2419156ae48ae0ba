"""`shardlang schedule`: what the ranks of a pipeline do when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, spec_options
from shardlang.cli.pictures import SUFFIXES, check_picture, write_picture

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled
    from shardlang.plan.schedule.lanes import Lanes
    from shardlang.plan.stage_types import PipelinePlan

FORMATS = (*SUFFIXES, ".json", ".csv")
"""Pictures, a trace, and the schedule itself."""


@click.command("schedule")
@click.argument("spec_path", metavar="SPEC")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write .svg, .png, a .json trace (Perfetto) or a .csv.",
)
@click.option(
    "--measured",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Put beside it the step that a run has profiled.",
)
@spec_options
def command(context: Context, spec_path: str, output: str | None, measured: Path | None) -> None:
    """Show what each rank of the pipeline of SPEC does when, and for how long ranks wait.

    Times are predicted from the operations of each stage; with the peaks of a `cluster`, in seconds
    that transfers take too. The .csv is that of torch's pipelines.
    """
    ending = Path(output).suffix.lower() if output is not None else None
    if ending is not None and ending not in FORMATS:
        raise click.BadParameter(
            f"'{output}' ends in none of {', '.join(FORMATS)}", param_hint="-o"
        )
    if output is not None and ending in SUFFIXES:
        check_picture(Path(output), "-o")
    if ending == ".csv" and measured is not None:
        raise click.UsageError("a .csv holds the schedule alone: leave --measured out")
    compiled, plan = _planned(context, spec_path)
    lanes = _lanes(compiled, plan, measured)
    if output is None:
        for line in _text(plan, lanes):
            context.show(line)
    else:
        _write(Path(output), plan, lanes, Path(spec_path).name)
        context.say(f"wrote {output}")
    context.finish(_document(plan, lanes, output))


def _planned(context: Context, path: str) -> tuple[Compiled, PipelinePlan]:
    """The compiled spec and the plan of its pipeline."""
    spec = context.load_spec(path)
    if spec.pipeline is None:
        raise click.UsageError(
            f"{path} states no `pipeline AXIS {{ split ... microbatches ... }}`, so its devices"
            " all compute the whole model"
        )
    from shardlang.compiler.pipelined import pipelined
    from shardlang.plan.stages import pipeline_plan

    compiled = context.compile(spec)
    return compiled, pipeline_plan(compiled, pipelined(compiled))


def _lanes(compiled: Compiled, plan: PipelinePlan, run: Path | None) -> list[Lanes]:
    """What was predicted, and what was measured."""
    from shardlang.plan.schedule.lanes import predicted
    from shardlang.plan.schedule.measured import MeasuredError, measured

    found = [predicted(plan.timeline, plan.unit)]
    if run is not None:
        try:
            found.append(measured(run, compiled.program.mesh.whole, plan.axis, plan.schedule))
        except MeasuredError as fault:
            raise click.UsageError(str(fault)) from fault
    return found


def _text(plan: PipelinePlan, lanes: Sequence[Lanes]) -> list[str]:
    from shardlang.plan.render_stages import bubble_lines, schedule_text
    from shardlang.plan.schedule.text import timeline_lines

    lines = [f"{schedule_text(plan)} along {plan.axis}", ""]
    lines += [*timeline_lines(plan.timeline), "", *bubble_lines(plan)]
    lines += [f"{one.title}: bubble {one.bubble:.1%}, {one.length:.3g} s" for one in lanes[1:]]
    return lines


def _write(path: Path, plan: PipelinePlan, lanes: Sequence[Lanes], name: str) -> None:
    from shardlang.plan.render_stages import schedule_text
    from shardlang.plan.schedule.picture import timeline_svg
    from shardlang.plan.schedule.trace import trace_text
    from shardlang.runtime.folder import cannot_write

    if path.suffix.lower() in SUFFIXES:
        title = f"{name}: {schedule_text(plan)} along {plan.axis}"
        write_picture(path, timeline_svg(lanes, title))
        return
    is_trace = path.suffix.lower() == ".json"
    text = trace_text(lanes) if is_trace else plan.schedule.to_csv()
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as fault:
        raise cannot_write(path, fault) from fault


def _document(plan: PipelinePlan, lanes: Sequence[Lanes], output: str | None) -> dict[str, object]:
    """The document: the schedule, its bubble, and the times."""
    return {
        "schedule": plan.name,
        "axis": plan.axis,
        "microbatches": plan.schedule.microbatches,
        "bubble": plan.bubble.to_json(),
        "predicted": lanes[0].to_json(),
        "measured": lanes[1].to_json() if len(lanes) > 1 else None,
        **({"output": output} if output is not None else {}),
    }
