"""`shardlang verify`: prove on one CPU that the sharded program computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shardlang.cli.common import Context, common_options

if TYPE_CHECKING:
    from shardlang.proof.report import Report


@click.command("verify")
@click.argument("spec_path", metavar="SPEC")
@click.option("--shrink", is_flag=True, help="Prove a smaller model with the same decisions.")
@click.option("--seed", default=0, show_default=True, help="Seed of all random values.")
@common_options
def command(context: Context, spec_path: str, shrink: bool, seed: int) -> None:
    """Prove that SPEC computes the same loss and gradients as its model.

    All devices are simulated in one process, in float64, on random parameters and inputs.
    """
    from shardlang.capture import CaptureError
    from shardlang.driver import CompileError
    from shardlang.ir.graph import ShardError
    from shardlang.proof.prove import verify_compiled

    spec = context.load_spec(spec_path)
    try:
        report = verify_compiled(context.compile(spec), shrink=shrink, seed=seed, say=context.say)
    except CompileError as failure:
        context.add(failure.diagnostics)
        context.fail()
    except (CaptureError, ShardError) as failure:
        from shardlang.blame import at_model

        context.add([at_model(failure, spec)])
        context.fail()
    if report.ok:
        context.finish(report.to_json())
    else:
        from shardlang.driver import mismatch

        context.add([mismatch(report, spec.model.span)])
        context.fail(report.to_json())
    context.show(summary(report))


def summary(report: Report) -> str:
    """The proof in a few lines."""
    found = report.to_json()
    lines = [f"proven equal on {report.devices} simulated devices, in float64"]
    if found["loss"] is not None:
        loss = found["loss"]
        lines.append(f"  loss       {loss['sharded']:.12g}, error {loss['error']:.1e}")
    outputs, gradients = found["outputs"], found["gradients"]
    lines.append(f"  outputs    error {outputs['max_error']:.1e}, worst `{outputs['worst']}`")
    if gradients is not None:
        text = f"error {gradients['max_error']:.1e}, worst `{gradients['worst']}`"
        lines.append(f"  gradients  {text}, of {gradients['count']} parameters")
        if gradients["unused"]:
            lines.append(f"  no gradient reaches {', '.join(gradients['unused'])}")
    if found["eager"] is not None:
        lines.append(f"  eager      {_eager(found['eager'])} at the model's own dtype")
    if report.draws_apart:
        lines.append(f"  random     {report.draws_apart} draws, as the shards make them")
    lines += [f"  cut        {cut}" for cut in found["cut"]]
    return "\n".join(lines)


def _eager(found: dict[str, Any]) -> str:
    text = f"outputs {found['error']:.1e}"
    gradients = found["gradients"]
    return text if gradients is None else f"{text}, gradients {gradients['max_error']:.1e}"
