"""`shardlang check`: everything that is wrong with a spec."""

from __future__ import annotations

import click

from shardlang.cli.common import Context, common_options


@click.command("check")
@click.argument("spec_path", metavar="SPEC")
@click.option("--no-model", is_flag=True, help="Read the spec only; import no model code.")
@common_options
def command(context: Context, spec_path: str, no_model: bool) -> None:
    """Report everything that is wrong with SPEC.

    Traces the model, lays every tensor out and compares the plan with the expectations.
    """
    context.findings_are_result = True
    spec = context.load_spec(spec_path)
    if not no_model:
        context.compile(spec)
    context.finish()
    context.say(f"{spec_path}: no errors")
