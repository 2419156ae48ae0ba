"""`shardlang graph`: the program as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, common_options

if TYPE_CHECKING:
    from shardlang.driver import Compiled
    from shardlang.spec import Spec

STAGES = ("traced", "propagated", "rewritten")
_MANY = 400
"""How many arrows Graphviz lays out in well under a minute."""

_FASTER = "layers that are alike are drawn once without --no-factored, a .dot file at once"


@click.command("graph")
@click.argument("spec_path", metavar="SPEC")
@click.option(
    "--stage",
    type=click.Choice(STAGES),
    default="rewritten",
    show_default=True,
    help="As the model does it; with layouts; or with collectives too.",
)
@click.option("--no-factored", is_flag=True, help="Draw every repeated layer.")
@click.option(
    "-o", "--output", metavar="FILE", help="Write a .dot file, or a drawn .svg or .png file."
)
@common_options
def command(
    context: Context, spec_path: str, stage: str, no_factored: bool, output: str | None
) -> None:
    """Draw the graph of SPEC, as DOT on stdout or into a file.

    Modules are nested boxes, layers that are alike are drawn once.
    """
    from shardlang.graph import FORMATS, DrawError, dot_of, write

    if output is not None and Path(output).suffix.lower() not in FORMATS:
        raise click.BadParameter(
            f"'{output}' ends in none of {', '.join(FORMATS)}", param_hint="-o"
        )
    compiled = _compile(context, context.load_spec(spec_path), stage)
    text = dot_of(compiled, stage, factored=not no_factored)
    if output is None:
        context.show(text.rstrip("\n"))
        context.finish({"stage": stage, "dot": text})
        return
    if Path(output).suffix.lower() != ".dot" and (count := text.count(" -> ")) > _MANY:
        context.say(f"Graphviz lays out {count} arrows, which may take minutes; {_FASTER}")
    try:
        write(text, Path(output))
    except (DrawError, OSError) as fault:
        raise click.UsageError(_reason(fault)) from fault
    context.say(f"wrote {output}")
    context.finish({"stage": stage, "output": output})


def _compile(context: Context, spec: Spec, stage: str) -> Compiled:
    """Run the passes up to a stage, so that a spec which fails later can still be drawn."""
    from shardlang.driver import CompileError, compile_spec
    from shardlang.graph import STAGES

    try:
        compiled = compile_spec(spec, passes=STAGES[stage])
    except CompileError as failure:
        context.add(failure.diagnostics)
        context.fail()
    context.add(compiled.diagnostics)
    context.stop_on_errors()
    return compiled


def _reason(fault: Exception) -> str:
    text = str(fault)
    help = getattr(fault, "help", "")
    return f"{text}; {help}" if help else text
