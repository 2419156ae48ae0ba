"""Prove the op rules: `python -m shardlang.rules.prove [--op NAME] [--sample N] [--seed S]`."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import click
import torch

from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.own import own_calls
from shardlang.proof.rules.prove import Tally, prove_call
from shardlang.proof.rules.samples import DTYPES, Skipped, calls_in, has_rule, op_infos
from shardlang.proof.rules.table import write_table

DTYPE_NAMES = ("float64", "int64", "bool", "complex128", "float32", "bfloat16")


def calls(
    names: tuple[str, ...], tally: Tally, dtypes: tuple[torch.dtype, ...]
) -> Iterator[tuple[str, AtenCall]]:
    """All distinct calls that have a rule, op by op, ours first."""
    seen: set[str] = set()
    for call in own_calls():
        name = call.target.__name__.split(".")[0]
        if not names or name in names:
            seen.add(call.key)
            yield name, call
    for name, infos in op_infos().items():
        if not names or name in names:
            yield from calls_of_op(name, infos, seen, tally, dtypes)


def calls_of_op(
    name: str,
    infos: list[Any],
    seen: set[str],
    tally: Tally,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Iterator[tuple[str, AtenCall]]:
    """The distinct calls of one op's samples that have a rule and are not in `seen`."""
    for info in infos:
        for call in calls_in(info, dtypes):
            if isinstance(call, Skipped):
                tally.skipped.append(call)
            elif not has_rule(call):
                tally.missing.setdefault(str(call.target), name)
            elif call.key not in seen:
                seen.add(call.key)
                yield name, call


def some_calls(
    names: tuple[str, ...], tally: Tally, chooser: random.Random, count: int
) -> Iterator[tuple[str, AtenCall]]:
    """`count` random calls of random ops."""
    infos = {n: found for n, found in op_infos().items() if not names or n in names}
    known: dict[str, list[tuple[str, AtenCall]]] = {}
    for _ in range(count):
        name = chooser.choice(sorted(infos))
        if name not in known:
            known[name] = list(calls_of_op(name, infos[name], set(), tally))
        if known[name]:
            yield chooser.choice(known[name])


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
@click.option("--verbose", is_flag=True, help="Print every call.")
@click.option("--table", is_flag=True, help="Enter what was proven in the committed table.")
def main(
    names: tuple[str, ...],
    sample: int | None,
    most: int | None,
    seed: int,
    dtypes: tuple[str, ...],
    verbose: bool,
    table: bool,
) -> None:
    """Check every legal split of every sample of every op that has a rule."""
    torch.set_num_threads(1)
    chooser, tally = random.Random(seed), Tally()
    if sample is None:
        found = calls(names, tally, tuple(getattr(torch, name) for name in dtypes))
    else:
        found = some_calls(names, tally, chooser, sample)
    for name, call in found:
        if verbose:
            print(call, flush=True)
        for failure in prove_call(name, call, tally, chooser, most):
            print(f"FAILED {failure}", flush=True)
    print(tally)
    if table:
        write_table(tally.proven)
    sys.exit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
