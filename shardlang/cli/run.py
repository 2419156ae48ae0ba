"""`shardlang run`: the program on the devices of the mesh."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardlang.cli.common import Context, common_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardlang.driver import Compiled
    from shardlang.run import Run
    from shardlang.runtime.train import Record
    from shardlang.spec import Spec


@click.command("run")
@click.argument("spec_path", metavar="SPEC")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--data", type=click.Path(dir_okay=False), help="Text to train on, byte by byte.")
@click.option("--save", type=click.Path(file_okay=False), help="Where to write the weights.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--reference", is_flag=True, help="Also train the plain model in one process, and compare."
)
@click.option("--nnodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--node-rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--rdzv-endpoint", default="", metavar="HOST:PORT", help="Where node 0 listens.")
@common_options
def command(
    context: Context,
    spec_path: str,
    nnodes: int,
    node_rank: int,
    rdzv_endpoint: str,
    **options: Any,
) -> None:
    """Train the model of SPEC on the devices of its mesh.

    Starts one process per device, unless a launcher such as torchrun has done so.
    """
    from shardlang.runtime.launch import launched

    _check_nodes(nnodes, node_rank, rdzv_endpoint)
    spec = context.load_spec(spec_path)
    if launched() or spec.mesh.devices == 1:
        _work(context, spec, **options)
    else:
        _launch(spec, options["device"], nnodes, node_rank, rdzv_endpoint)


def _check_nodes(nnodes: int, node_rank: int, endpoint: str) -> None:
    if node_rank >= nnodes:
        raise click.BadParameter(f"{node_rank} is not below {nnodes}", param_hint="'--node-rank'")
    if nnodes > 1 and not endpoint:
        raise click.BadParameter("is needed for several nodes", param_hint="'--rdzv-endpoint'")


def _launch(spec: Spec, device: str, nnodes: int, node_rank: int, endpoint: str) -> None:
    """Start the processes of this node and wait for them."""
    from shardlang.runtime.launch import Job, JobError, launch, this_command

    job = Job(this_command(), spec.mesh.devices, device, nnodes, node_rank, endpoint)
    try:
        launch(job)
    except JobError as failure:
        if failure.spoken:
            raise click.exceptions.Exit(failure.status) from failure
        raise


def _work(
    context: Context,
    spec: Spec,
    steps: int,
    data: str | None,
    save: str | None,
    device: str,
    seed: int,
    reference: bool,
) -> None:
    """The run itself, on one device."""
    from shardlang.runtime.groups import check_world_size, join, leave
    from shardlang.runtime.reports import reporting

    check_world_size(spec.mesh)
    compiled = _compile(context, spec)
    with reporting(int(os.environ.get("RANK", "0"))):
        from shardlang.run import Run, recipe_of, save_config, sharded_module, summary
        from shardlang.runtime.save import check_folder
        from shardlang.runtime.save import save as save_weights

        if save is not None and context.speaks:
            check_folder(Path(save))
        run = Run(compiled, recipe_of(compiled, steps, seed), Path(data) if data else None)
        groups = join(spec.mesh, device)
        module = sharded_module(compiled, groups, seed)
        speaks = groups.rank == 0
        records = run.sharded(module, lambda found: _shown(context, found, steps, "training"))
        found = summary(run, module, records)
        if save is not None:
            save_weights(module, Path(save))
            found["saved"] = save
            if speaks:
                save_config(compiled, Path(save))
        leave()
        if speaks and reference:
            found["reference"] = _reference(context, run, records)
        if speaks:
            _finish(context, found)


def _compile(context: Context, spec: Spec) -> Compiled:
    """Compile, with the findings of every stage as the command's own."""
    from shardlang.driver import CompileError, compile_spec
    from shardlang.runtime.reports import FOLDER

    try:
        compiled = compile_spec(spec)
    except CompileError as failure:
        context.add(failure.diagnostics)
        if not context.speaks and FOLDER in os.environ:
            click.echo(next(str(d) for d in failure.diagnostics if d.is_error), err=True)
        context.fail()
    context.add(compiled.diagnostics)
    context.stop_on_errors()
    return compiled


def _shown(context: Context, records: Iterator[Record], steps: int, title: str) -> Iterator[Record]:
    """The records, shown as they come: a bar for a person, lines for a program."""
    from shardlang.runtime.progress import is_terminal, print_lines, show_bar

    if not context.speaks:
        return records
    if is_terminal() and not context.is_json:
        return show_bar(records, steps, title)
    return print_lines(records)


def _reference(context: Context, run: Run, records: list[Record]) -> dict[str, Any]:
    """Train the plain model, and say how the losses compare."""
    from shardlang.run import compare
    from shardlang.runtime.progress import is_terminal, show_bar

    seen = is_terminal() and not context.is_json
    steps = run.recipe.steps
    plain = run.reference(lambda found: show_bar(found, steps, "reference") if seen else found)
    if seen:
        _print_losses(records, plain)
    return compare(records, plain)


def _print_losses(records: list[Record], plain: list[Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "sharded", "one process", "difference", title="loss")
    for a, b in zip(records, plain, strict=True):
        if a.loss is not None and b.loss is not None:
            shown = f"{a.loss:.7f}", f"{b.loss:.7f}", f"{abs(a.loss - b.loss):.1e}"
            table.add_row(str(a.step), *shown)
    Console().print(table)


def _sentence(found: dict[str, Any]) -> str:
    """The summary for a person."""
    loss = f"loss {found['first_loss']:.4f} to {found['loss']:.4f}, " if found["loss"] else ""
    speed = f"{found['tokens_per_s']:,.0f} tokens/s"
    return f"{found['steps']} steps on {found['devices']} devices: {loss}{speed}"


def _finish(context: Context, found: dict[str, Any]) -> None:
    """The last line: the summary."""
    from shardlang.runtime.progress import is_terminal

    if context.is_json or not is_terminal():
        context.print_document({"summary": found})
    if context.is_json:
        return
    if is_terminal():
        click.echo(_sentence(found))
    sys.stdout.flush()
    context.finish()
