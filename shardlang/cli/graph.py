"""`shardlang graph`: the program as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, common_options

if TYPE_CHECKING:
    pass

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
    from shardlang.graph.draw import STAGES as PASSES

    compiled = context.compile(context.load_spec(spec_path), PASSES[stage])
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


def _reason(fault: Exception) -> str:
    text = str(fault)
    help = getattr(fault, "help", "")
    return f"{text}; {help}" if help else text
