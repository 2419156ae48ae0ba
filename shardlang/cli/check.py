"""`shardlang check`: everything that is wrong with a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, spec_options

if TYPE_CHECKING:
    from shardlang.spec import Spec


@click.command("check")
@click.argument("spec_path", metavar="SPEC")
@click.option("--no-model", is_flag=True, help="Read the spec only; import no model code.")
@spec_options
def command(context: Context, spec_path: str, no_model: bool) -> None:
    """Report everything that is wrong with SPEC; `run` opens its data, which may lie elsewhere.

    Traces the model, lays every tensor out and compares the plan with the expectations.
    """
    context.findings_are_result = True
    spec = context.load_spec(spec_path)
    if not no_model:
        _check_with_model(context, spec)
    context.finish()
    context.say(f"{spec_path}: no errors")


def _check_with_model(context: Context, spec: Spec) -> None:
    """Compile, cut the batch where that is stated, and compare the plan with the expectations."""
    compiled = context.compile(spec)
    if not spec.expects and spec.accumulate is None:
        return
    from shardlang.plan import plan_of
    from shardlang.plan.expectations import check_expects

    context.add(check_expects(spec, plan_of(compiled)))
    context.stop_on_errors()
