"""Checks across ranks, made before the first collective of the program."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence

import torch.distributed as dist
from torch import fx

from shardlang.ir.program import LocalProgram
from shardlang.ir.step import (
    StepProgram,
    collectives_of,
    is_collective,
    is_wait,
    started_by,
    stream_of,
)
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.watch import named
from shardlang.runtime.workers import HASH_SEED


def check_same_program(program: LocalProgram, groups: Groups) -> None:
    """Compare the programs of all ranks.

    Ranks that run different programs wait for each other in different collectives, for ever.

    Raises:
        RunError: SH0602, on every rank, naming the ranks that differ from rank 0.
    """
    if groups.mesh.devices > 1:
        _check_same(program.fingerprint(), lambda: program.text().splitlines(), groups)


def check_same_collectives(step: StepProgram, groups: Groups) -> None:
    """Compare in which order the ranks start and wait for collectives, as of their programs.

    Raises:
        RunError: SH0602, on every rank, naming the ranks that differ from rank 0.
    """
    if groups.mesh.devices > 1:
        lines = [_line(node) for node in step.graph.nodes if is_collective(node) or is_wait(node)]
        found = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        _check_same(found, lambda: lines, groups)


def check_same_spec(text: str, groups: Groups) -> None:
    """Compare the specs of all ranks: what they say of the optimizer is in no program.

    Raises:
        RunError: SH0602, on every rank, naming the ranks that differ from rank 0.
    """
    if groups.mesh.devices > 1:
        _check_same(hashlib.sha256(text.encode()).hexdigest(), text.splitlines, groups, "spec")


def check_same_text(text: str, groups: Groups) -> None:
    """Compare a text of all ranks, such as the schedule of a pipeline.

    Raises:
        RunError: SH0602, on every rank, naming the ranks that differ from rank 0.
    """
    if groups.mesh.devices > 1:
        _check_same(hashlib.sha256(text.encode()).hexdigest(), text.splitlines, groups)


def check_same_options(options: Mapping[str, str], groups: Groups) -> None:
    """Compare what the command lines of all ranks ask for. Collective.

    Args:
        options: by name, in words; empty for one that is not given.

    Raises:
        RunError: SH0612, on every rank, naming an option and a rank that has it otherwise.
    """
    host = groups.on_host()
    if host is None:
        return
    found: list[Mapping[str, str]] = [options] * groups.mesh.devices
    label, gather = "comparison of the options of all ranks", dist.all_gather_object
    named(label, gather, found, options, host.process_group)
    for rank, other in enumerate(found):
        for name, first in found[0].items():
            if other[name] != first:
                want, got = (f"`{x}`" if x else f"no `--{name}`" for x in (first, other[name]))
                raise RunError(
                    "SH0612",
                    "the ranks are started with different options:"
                    f" rank 0 with {want}, rank {rank} with {got}",
                    help="give the command on every node the same options, but for `--node-rank`",
                )


def _line(node: fx.Node) -> str:
    """What a node sends, or for what it waits."""
    if is_wait(node):
        return f"{node.name}: wait for {started_by(node).name}"
    sent = "; ".join(f"{x.name}: {collective}" for x, collective in collectives_of(node))
    return f"{node.name}: {sent}, {stream_of(node)}"


def _check_same(
    mine: str, lines: Callable[[], list[str]], groups: Groups, what: str = "program"
) -> None:
    """Compare a hash of all ranks; where they differ, say by which line."""
    world = groups.mesh.devices
    prints: list[str] = [""] * world
    label = f"comparison of the {what}s of all ranks"
    named(label, dist.all_gather_object, prints, mine)
    others = [rank for rank in range(world) if prints[rank] != prints[0]]
    if not others:
        return
    texts: list[list[str]] = [[]] * world
    told = lines() if groups.rank in (0, others[0]) else []
    named(label, dist.all_gather_object, texts, told)
    listed = ", ".join(str(rank) for rank in others[:8]) + (", …" if len(others) > 8 else "")
    plural = "s" if len(others) > 1 else ""
    verb = "hold" if plural else "holds"
    raise RunError(
        "SH0602",
        f"rank{plural} {listed} {verb} another {what} than rank 0: "
        + first_difference(texts[0], texts[others[0]]),
        help=same_start(),
    )


def same_start() -> str:
    """What to do where ranks hold different programs."""
    said = "start every rank from the same spec, model and versions"
    if os.environ.get(HASH_SEED, "random") != "random":
        return said
    return f"{said}, and with {HASH_SEED}=0: a model may go through a set, whose order it decides"


def first_difference(one: Sequence[str], other: Sequence[str], rank: int = 0) -> str:
    """Where two texts part, in words; `rank` has the first."""
    for number, (a, b) in enumerate(itertools.zip_longest(one, other, fillvalue="nothing"), 1):
        if a != b:
            one_said, other_said = _around_difference(a.strip(), b.strip())
            return f"line {number} is `{one_said}` on rank {rank} and `{other_said}` there"
    return "the texts agree"


def _around_difference(one: str, other: str, width: int = 100) -> tuple[str, str]:
    """Two lines, cut to a width in which they differ."""
    pairs = enumerate(itertools.zip_longest(one, other))
    same = next((at for at, (a, b) in pairs if a != b), len(one))
    begin = max(0, same - width // 2) if max(len(one), len(other)) > width else 0
    return _cut(one, begin, width), _cut(other, begin, width)


def _cut(line: str, begin: int, width: int) -> str:
    end = begin + width
    return "…" * (begin > 0) + line[begin:end] + "…" * (len(line) > end)
