"""`shardlang verify`: prove on one CPU that the sharded program computes the same."""

from __future__ import annotations

import click

from shardlang.cli.common import Context, spec_options


@click.command("verify")
@click.argument("spec_path", metavar="SPEC")
@click.option("--shrink", is_flag=True, help="Prove a smaller model with the same decisions.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random values.")
@spec_options
def command(context: Context, spec_path: str, shrink: bool, seed: int) -> None:
    """Prove that SPEC computes the same loss and gradients as its model.

    All devices are simulated in one process, in float64, on random parameters and the model file's
    own batches, or random inputs where it has none.
    """
    from shardlang.compiler.driver import CompileError
    from shardlang.proof.findings import findings
    from shardlang.proof.prove import verify_compiled

    spec = context.load_spec(spec_path)
    try:
        report = verify_compiled(context.compile(spec), shrink=shrink, seed=seed, say=context.say)
    except CompileError as failure:
        context.add(failure.diagnostics)
        context.fail()
    context.add(findings(report, spec.model.span))
    if any(finding.is_error for finding in context.findings):
        context.fail(report.to_json())
    context.finish(report.to_json())
    context.show(str(report))
