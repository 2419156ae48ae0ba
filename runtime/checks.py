"""Checks across ranks, made before the first collective of the program."""

from __future__ import annotations

import itertools

import torch.distributed as dist

from shardlang.ir.program import LocalProgram
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.watch import named


def check_same_program(program: LocalProgram, groups: Groups) -> None:
    """Compare the programs of all ranks.

    Ranks that run different programs wait for each other in different collectives, for ever.

    Raises:
        RunError: SH0602, on every rank, naming the ranks that differ from rank 0.
    """
    world = groups.mesh.devices
    if world == 1:
        return
    prints: list[str] = [""] * world
    label = "comparison of the programs of all ranks"
    named(label, dist.all_gather_object, prints, program.fingerprint())
    others = [rank for rank in range(world) if prints[rank] != prints[0]]
    if not others:
        return
    texts: list[list[str]] = [[]] * world
    mine = program.text().splitlines() if groups.rank in (0, others[0]) else []
    named(label, dist.all_gather_object, texts, mine)
    listed = ", ".join(str(rank) for rank in others[:8]) + (", …" if len(others) > 8 else "")
    plural = "s" if len(others) > 1 else ""
    verb = "hold" if plural else "holds"
    raise RunError(
        "SH0602",
        f"rank{plural} {listed} {verb} another program than rank 0: "
        + first_difference(texts[0], texts[others[0]]),
        help="start every rank from the same spec, model and versions",
    )


def first_difference(one: list[str], other: list[str]) -> str:
    """Where two texts part, in words."""
    for number, (a, b) in enumerate(itertools.zip_longest(one, other, fillvalue="nothing"), 1):
        if a != b:
            return f"line {number} is `{_short(a)}` on rank 0 and `{_short(b)}` there"
    return "the texts agree"


def _short(line: str, width: int = 100) -> str:
    return line.strip() if len(line) <= width else line.strip()[: width - 1] + "…"
