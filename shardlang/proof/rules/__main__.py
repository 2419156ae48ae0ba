"""Prove the op rules: `python -m shardlang.rules.prove [--op NAME] [--sample N] [--seed S]`."""

from __future__ import annotations

import os
import random
import sys
import time

import click
import torch

from shardlang.proof.rules.every import Task, run_all, some_calls, tasks
from shardlang.proof.rules.prove import Tally, prove_call
from shardlang.proof.rules.table import write_table

DTYPE_NAMES = ("float64", "int64", "bool", "complex128", "float32", "bfloat16")


@click.command()
@click.option(
    "--op", "names", multiple=True, help="Only this op (as in PyTorch's op_db); repeatable."
)
@click.option("--sample", type=int, default=None, help="Only so many random calls.")
@click.option("--most", type=int, default=None, help="At most so many assignments of one call.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choice.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(DTYPE_NAMES),
    default=DTYPE_NAMES[:3],
    show_default=True,
    help="Dtypes of the samples; repeatable.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=os.cpu_count(), show_default="all cores",
    help="Processes.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="Print a line for every op.")
@click.option("--table", is_flag=True, help="Enter what was proven in the committed table.")
def main(
    names: tuple[str, ...],
    sample: int | None,
    most: int | None,
    seed: int,
    dtypes: tuple[str, ...],
    jobs: int,
    verbose: bool,
    table: bool,
) -> None:
    """Check every legal split of every sample of every op that has a rule."""
    tally = Tally()
    if sample is not None:
        _prove_some(names, tally, sample, most, seed)
    else:
        kinds = tuple(getattr(torch, name) for name in dtypes)
        _prove_all(tally, tasks(names, kinds, most, seed), jobs, verbose)
    click.echo(str(tally))
    untried = [name for name in names if name not in tally.ops]
    if untried:
        click.echo(
            f"nothing was tried of {', '.join(untried)}: a name is one of PyTorch's op_db, or the"
            " short name of an op with calls in shardlang/proof/rules/own.py",
            err=True,
        )
    if table:
        write_table(tally.proven)
    sys.exit(1 if tally.failures or untried else 0)


def _prove_some(
    names: tuple[str, ...], tally: Tally, count: int, most: int | None, seed: int
) -> None:
    chooser = random.Random(seed)
    for name, call in some_calls(names, tally, chooser, count):
        for failure in prove_call(name, call, tally, chooser, most):
            click.echo(f"FAILED {failure}")


def _prove_all(tally: Tally, work: list[Task], jobs: int, verbose: bool) -> None:
    start = time.monotonic()
    with click.progressbar(length=len(work), label="proving", file=sys.stderr) as progress:
        for task, found in run_all(work, jobs):
            tally.add(found)
            for failure in found.failures:
                click.echo(f"FAILED {failure}")
            if verbose:
                seconds = time.monotonic() - start
                counts = f"{found.calls} samples, {found.assignments} assignments"
                click.echo(f"{seconds:7.0f} s  {task.op}: {counts}")
            progress.update(1)


if __name__ == "__main__":
    main()
