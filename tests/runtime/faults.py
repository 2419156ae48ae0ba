"""Ranks that fail in every way, for the failure tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import cases as known
import torch

from shardlang.cli.training import Options
from shardlang.ir.reshard import Reshard
from shardlang.passes.graph_text import read_graph
from shardlang.passes.rewrite.localize import to_program
from shardlang.runtime.checks import check_same_options, check_same_program, check_same_spec
from shardlang.runtime.groups import Groups, join
from shardlang.runtime.stop import Stop
from shardlang.spec import load_spec
from shardlang.spec.flat import bare_text
from tests.ways import there

RANK = int(os.environ.get("RANK", "0"))


def _reduce(groups: Groups) -> None:
    whole = known.lay((4, ()))
    axes = groups.mesh.axes
    reshard = Reshard(axes, known.marked(whole, "P", axes), whole)
    there(reshard, groups, "forward all_reduce over a in layers.3")(torch.ones(4))


def killed() -> None:
    """Rank 1 dies of a signal while the others wait for it."""
    groups = join(known.LINE2)
    _reduce(groups)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    _reduce(groups)


def raises() -> None:
    """Rank 1 has an error of its own."""
    groups = join(known.LINE2)
    if RANK == 1:
        raise ValueError("no more\nof this")
    _reduce(groups)


def alone() -> None:
    """Rank 1 has an error of its own between two collectives, and no supervisor."""
    groups = join(known.LINE2)
    _reduce(groups)
    if RANK == 1:
        raise ValueError("label 7 of 5")
    _reduce(groups)


def stuck() -> None:
    """Rank 1 never comes to the collective."""
    groups = join(known.LINE2, timeout_s=4)
    _reduce(groups)
    if RANK == 1:
        time.sleep(60)
    _reduce(groups)


def waits_in_a_step() -> None:
    """Rank 1 never ends its step, and rank 0 waits for it, when a signal asks both to save."""
    groups = join(known.LINE2)
    with Stop(groups):
        _reduce(groups)
        if RANK == 1:
            waits()
        _reduce(groups)


def two_programs() -> None:
    """Rank 1 has another program."""
    groups = join(known.LINE2)
    op = "neg" if RANK == 0 else "abs"
    lines = f'program\nmesh {known.LINE2}\nx = input "x" : f32[5]\ny = {op}(x) : f32[5]'
    program = to_program(read_graph(f'{lines}\nreturn output "y" y'))
    check_same_program(program, groups)


def other_options() -> None:
    """Rank 1 is started to save elsewhere, which is its own affair, and with a reference."""
    save, reference = Path(f"w{RANK}"), bool(RANK)
    options = Options(3, None, save, "cpu", 0, reference, False, None, False, 9.0)
    check_same_options(options.shared(), join(known.LINE2))


def other_specs() -> None:
    """Rank 1 is given another clipping, which is in no program; comments and folders may differ."""
    folder = Path(os.environ["WAIT_IN"]) / str(RANK)
    folder.mkdir()
    path = folder / "of_rank.shard"
    path.write_text(
        f"# rank {RANK}\nmesh {{\n  a = 2 # rank {RANK}\n}}\n"
        f'model "{folder}/of_rank.py:build"\n'
        f"optimizer sgd(lr = 0.1, clip = {0.5 + RANK})\n"
    )
    spec, _ = load_spec(path)
    assert spec is not None
    check_same_spec(bare_text(spec), join(known.LINE2))


def other_mesh() -> None:
    """Two processes for a mesh of four."""
    join(known.LINE4)


def waits() -> None:
    """Wait for ever, after saying where."""
    with open(f"{os.environ['WAIT_IN']}/{RANK}", "w") as file:  # noqa: PTH123
        file.write(str(os.getpid()))
    time.sleep(120)
