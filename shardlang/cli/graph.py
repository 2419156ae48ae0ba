"""`shardlang graph`: the program as a picture, or as text between two passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from shardlang.cli.common import Context, spec_options

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled
    from shardlang.passes.pipeline import Pass

STAGES = ("traced", "propagated", "rewritten", "step")
PHASES = ("forward", "backward", "update")
_MANY = 400
"""How many arrows Graphviz lays out in well under a minute."""

_FASTER = "layers that are alike are drawn once without --no-factored, a .dot file at once"


@click.command("graph")
@click.argument("spec_path", metavar="SPEC")
@click.option(
    "--stage",
    type=click.Choice(STAGES),
    default="step",
    show_default=True,
    help="As the model does it; with layouts; with reshards; or all that a device runs.",
)
@click.option(
    "--phase", type=click.Choice(PHASES), multiple=True, help="Draw this phase of the step alone."
)
@click.option("--after", metavar="PASS", help="Print the graph's text after a pass instead.")
@click.option("--long", is_flag=True, help="With --after: modules, source lines and reasons too.")
@click.option("--no-factored", is_flag=True, help="Draw every repeated layer.")
@click.option(
    "-o", "--output", metavar="FILE", help="Write a .dot file, or a drawn .svg or .png file."
)
@spec_options
def command(
    context: Context,
    spec_path: str,
    stage: str,
    phase: tuple[str, ...],
    after: str | None,
    long: bool,
    no_factored: bool,
    output: str | None,
) -> None:
    """Draw the step of SPEC, as DOT on stdout or into a file: forward, backward and update.

    Modules are nested boxes, layers that are alike are drawn once.
    """
    if after is not None:
        refuse_beside_after()
        print_after(context, spec_path, after, long)
        return
    if long:
        raise click.UsageError("--long belongs to --after: a picture has one form")
    if phase and stage != "step":
        raise click.UsageError("--phase belongs to --stage step: before it there is no backward")
    from shardlang.graph import FORMATS, DrawError, dot_of, write

    if output is not None and Path(output).suffix.lower() not in FORMATS:
        raise click.BadParameter(
            f"'{output}' ends in none of {', '.join(FORMATS)}", param_hint="-o"
        )
    from shardlang.graph.draw import STAGES as PASSES
    from shardlang.graph.picture import Drawn
    from shardlang.plan.moments import Phase
    from shardlang.runtime.folder import cannot_write

    drawn = Drawn(stage)
    compiled = context.compile(context.load_spec(spec_path), PASSES[drawn])
    phases = [Phase(one) for one in phase or PHASES]
    text = dot_of(compiled, drawn, factored=not no_factored, phases=phases)
    if output is None:
        context.show(text.rstrip("\n"))
        context.finish({"stage": stage, "dot": text})
        return
    if Path(output).suffix.lower() != ".dot" and (count := text.count(" -> ")) > _MANY:
        context.say(f"Graphviz lays out {count} arrows, which may take minutes; {_FASTER}")
    try:
        write(text, Path(output))
    except DrawError as fault:
        raise click.UsageError(_reason(fault)) from fault
    except OSError as fault:
        raise cannot_write(Path(output), fault) from fault
    context.say(f"wrote {output}")
    context.finish({"stage": stage, "output": output})


def refuse_beside_after() -> None:
    """Refuse the options of a picture, which a text does not have."""
    context = click.get_current_context()
    for name in ("stage", "phase", "no_factored", "output"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} belongs to a picture; --after prints a text")


def print_after(context: Context, spec_path: str, after: str, long: bool) -> None:
    """Print the graph's text after a pass."""
    from shardlang.ir.text import graph_text
    from shardlang.passes.pipeline import PIPELINE

    passes = passes_to(after)
    compiled = context.compile(context.load_spec(spec_path), passes)
    if after in step_passes():
        text = step_after(compiled, after, long)
    else:
        text = graph_text(compiled.graph, local=after == PIPELINE[-1].name, long=long)
    context.show(text)
    context.finish({"after": after, "text": text})


def passes_to(after: str) -> tuple[Pass, ...]:
    """The pipeline up to a pass, itself included; all of it for a pass on the step program.

    Raises:
        click.BadParameter: there is no such pass.
    """
    from shardlang.passes.pipeline import PIPELINE

    names = ["normalize", *(one.name for one in PIPELINE)]
    if after in step_passes():
        return PIPELINE
    if after not in names:
        known = ", ".join([*names, *step_passes()])
        raise click.BadParameter(f"'{after}' is none of {known}", param_hint="--after")
    return PIPELINE[: names.index(after)]


def step_passes() -> tuple[str, ...]:
    """The passes on the step program, by name."""
    from shardlang.passes.step.write_step import NAMES

    return NAMES


def step_after(compiled: Compiled, after: str, long: bool) -> str:
    """The text of the step program after a pass; of a microbatch where there are several.

    Raises:
        click.BadParameter: nothing is trained, so there is no step.
    """
    from shardlang.compiler.whole_step import whole_step
    from shardlang.ir.step_text import step_text

    step = whole_step(compiled, after)
    if step is None:
        raise click.BadParameter(
            f"'{after}' works on a step, and nothing is trained", param_hint="--after"
        )
    return step_text(step.step, compiled.program.step, long=long)


def _reason(fault: Exception) -> str:
    text = str(fault)
    help = getattr(fault, "help", "")
    return f"{text}; {help}" if help else text
