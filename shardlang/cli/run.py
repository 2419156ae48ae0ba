"""`shardlang run`: the program on the devices of the mesh."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from shardlang.cli.common import Context, spec_options

if TYPE_CHECKING:
    from shardlang.runtime.launch import Job, JobError
    from shardlang.spec import Spec


LOST = ("SH0603", "SH0604")
"""How a job ends that has lost a rank: from the last checkpoint it may go on."""


@click.command("run")
@click.argument("spec_path", metavar="SPEC")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Tokens, text or a data set to train on, in place of the spec's.",
)
@click.option(
    "--save", type=click.Path(file_okay=False, path_type=Path), help="Where to write the weights."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the run, in which its checkpoints are.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in `--out`.")
@click.option("--tensorboard", is_flag=True, help="Write curves for TensorBoard into `--out`.")
@click.option(
    "--profile",
    type=click.IntRange(min=1),
    metavar="STEP",
    help="Write the trace of this step into `--out`.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--reference", is_flag=True, help="Also train the plain model in one process, and compare."
)
@click.option("--compile", is_flag=True, help="Compile what lies between two collectives.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a rank waits in a collective.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often a run that loses a rank begins again from its last checkpoint.",
)
@click.option("--nnodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--node-rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--rdzv-endpoint", default="", metavar="HOST:PORT", help="Where node 0 listens.")
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to keep what the other ranks than 0 print.",
)
@spec_options
def command(
    context: Context,
    spec_path: str,
    nnodes: int,
    node_rank: int,
    rdzv_endpoint: str,
    log_dir: Path | None,
    steps: int,
    data: Path | None,
    save: Path | None,
    out: Path | None,
    resume: bool,
    tensorboard: bool,
    profile: int | None,
    device: str,
    seed: int,
    reference: bool,
    compile: bool,
    timeout: float,
    max_restarts: int,
) -> None:
    """Train the model of SPEC on the devices of its mesh.

    Starts one process per device, unless a launcher such as torchrun has done so.
    """
    from shardlang.runtime.launch import Job, launched, this_command
    from shardlang.runtime.trainer.learning_rate import check_lasts
    from shardlang.training.recipe import phases_of

    _check_nodes(nnodes, node_rank, rdzv_endpoint)
    _check_out(out, resume, max_restarts)
    spec = context.load_spec(spec_path)
    _check_seeing(out, tensorboard, profile, steps)
    _check_folder(context, spec, out)
    check_lasts(phases_of(spec), steps)
    seed = _seed_of(out, seed) if resume and out is not None else seed
    if data is not None:
        context.spec = replace(spec, data=None)  # what is wrong with `data` is not the statement's
    if launched() or (spec.mesh.devices == 1 and not max_restarts):
        _check_alone(nnodes, log_dir, max_restarts)
        from shardlang.cli.training import Options, work

        seen = tensorboard, profile
        options = Options(
            steps, data, save, device, seed, reference, compile, out, resume, timeout, *seen
        )
        work(context, spec, options)
    else:
        nodes = (nnodes, node_rank, rdzv_endpoint)
        saves = save is not None or out is not None
        job = Job(
            this_command(),
            spec.mesh.devices,
            device,
            *nodes,
            saves=saves,
            logs=log_dir,
            failed=None if out is None else out / "logs",
        )
        _launch(job, max_restarts, spec, out if node_rank == 0 else None)


def _check_out(out: Path | None, resume: bool, max_restarts: int) -> None:
    given = {"--resume": resume, "--max-restarts": max_restarts > 0}
    name = next((name for name in given if given[name]), None)
    if name is not None and out is None:
        raise click.BadParameter("needs `--out FOLDER`", param_hint=f"'{name}'")


def _check_nodes(nnodes: int, node_rank: int, endpoint: str) -> None:
    if node_rank >= nnodes:
        raise click.BadParameter(f"{node_rank} is not below {nnodes}", param_hint="'--node-rank'")
    if nnodes > 1 and not endpoint:
        raise click.BadParameter("is needed for several nodes", param_hint="'--rdzv-endpoint'")


def _check_seeing(out: Path | None, tensorboard: bool, profile: int | None, steps: int) -> None:
    for given, name in ((tensorboard, "--tensorboard"), (profile is not None, "--profile")):
        if given and out is None:
            raise click.BadParameter("needs `--out FOLDER`", param_hint=f"'{name}'")
    if profile is not None and profile > steps:
        message = f"step {profile} comes after the last one, {steps}"
        raise click.BadParameter(message, param_hint="'--profile'")


def _check_folder(context: Context, spec: Spec, out: Path | None) -> None:
    """Refuse a spec that states checkpoints where there is no folder for them."""
    from shardlang.grammar.diagnostics import error

    if spec.checkpoint is not None and out is None:
        message = "the run has no folder for the checkpoints that the spec states"
        help = "add `--out FOLDER`, or leave the statement out"
        context.add([error("SH0664", message, spec.checkpoint.span, help=help)])
        context.stop_on_errors()


def _seed_of(out: Path, seed: int) -> int:
    """The seed of the run that goes on, which no other one may take the place of."""
    from shardlang.runtime.trainer.run_folder import about_in
    from shardlang.training.saving import last_in

    known = about_in(out).get("seed")
    if not isinstance(known, int) or last_in(out) is None:
        return seed
    given = click.get_current_context().get_parameter_source("seed")
    if known != seed and given is not ParameterSource.DEFAULT:
        message = f"the run in `{out}` has the seed {known}, and goes on with its random numbers"
        raise click.BadParameter(message, param_hint="'--seed'")
    return known


def _check_alone(nnodes: int, log_dir: Path | None, max_restarts: int) -> None:
    """Refuse what only a supervisor carries out, where this process is under none of ours."""
    from shardlang.runtime.reports import FOLDER

    given = {
        "--nnodes": nnodes > 1,
        "--log-dir": log_dir is not None,
        "--max-restarts": max_restarts > 0,
    }
    name = next((name for name in given if given[name]), None)
    if name is not None and FOLDER not in os.environ:
        message = "is for runs that start several processes, and this one starts none"
        raise click.BadParameter(message, param_hint=f"'{name}'")


def _launch(job: Job, restarts: int, spec: Spec, out: Path | None) -> None:
    """Start the processes of this node and wait for them, again if a rank is lost.

    Args:
        out: the folder of the run, where rank 0 is one of these processes.
    """
    from shardlang.runtime.launch import JobError, launch
    from shardlang.runtime.trainer.run_folder import note_failure

    began = datetime.now().astimezone()
    try:
        launch(job)
    except JobError as failure:
        if failure.spoken:
            raise click.exceptions.Exit(failure.status) from failure
        rank = f"rank {failure.rank} "
        if failure.message.startswith(rank):
            failure.message = f"{rank}{_stages(spec, failure.rank)}{failure.message[len(rank) :]}"
        if out is not None:
            note_failure(out, failure.message, began)
        if failure.code not in LOST:
            raise
        if not restarts:
            _note(failure, out)
            raise
        left = f"{restarts - 1} more restart{'s' * (restarts != 2)} left"
        click.echo(f"{failure.message}; begins again from the last checkpoint, {left}", err=True)
        again = [] if "--resume" in job.command else ["--resume"]
        _launch(replace(job, command=[*job.command, *again]), restarts - 1, spec, out)


def _note(failure: JobError, out: Path | None) -> None:
    """Let a failure say from where the run may go on, which a lost rank cannot say itself."""
    from shardlang.training.saving import last_in, note_of

    note = "" if out is None else note_of(last_in(out))
    if note and note not in failure.notes:
        failure.notes = (*failure.notes, note)


def _stages(spec: Spec, rank: int) -> str:
    """Which stages of a pipeline the rank computes, to stand behind its number."""
    from shardlang.compiler.pipelined import schedule_of

    if spec.pipeline is None:
        return ""
    place = spec.mesh.coord(rank)[spec.pipeline.axis]
    stages = [i for i, one in enumerate(schedule_of(spec).rank_of()) if one == place]
    words = "stage" if len(stages) == 1 else "stages"
    return f"({words} {', '.join(map(str, stages))} along `{spec.pipeline.axis}`) "
