"""What a job compiles once, before its ranks are forked: `prepared.py module` forks them.

The module's `prepare` compiles, and keeps what it compiles in caches that the ranks inherit. Two
programs that were compiled apart are the same all the same: jobs of several such processes, and
those whose ranks compile for themselves, see to it (`prepared` of `spawn`).
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from shardlang.api import Program
from shardlang.compiler import variants
from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import axis_of, schedule_of
from shardlang.ir.collection import RARELY
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.runtime.reports import die_with_parent
from shardlang.training import accumulated, staged
from tests import captures
from tests.runtime.zygote import Zygote, address_of, become

LATER = (
    (staged, "along_stages"), (staged, "pipelined_along"),
    (accumulated, "accumulated"), (accumulated, "accumulated_step"), (variants, "write_step"),
)  # fmt: skip
"""What is compiled only when a program is loaded, or takes its first step."""


def prepare_step(program: Program) -> None:
    """Compile what a step of a program from its loss needs."""
    compiled, accumulate = program.compiled, program.compiled.spec.accumulate
    trained = sorted(leaf.name for leaf in compiled.program.leaves if leaf.trainable)
    if compiled.spec.pipeline is not None:
        along, schedule = staged.along_stages(compiled), schedule_of(compiled.spec)
        staged.pipelined_along(along, schedule, axis_of(compiled), trained)
    elif accumulate is not None and accumulate.count > 1:
        accumulated.accumulated_step(accumulated.accumulated(compiled), trained)
    else:
        for ends in differentiable(compiled.program), [str(compiled.program.loss)]:
            variants.write_step(compiled.program, frozenset(trained), ends)


def share() -> None:
    """From now on this process compiles a step of a program once, and its forks find it."""
    for module, name in LATER:
        vars(module)[name] = _once(vars(module)[name])


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its answers kept: by the very program, and by what else it is given.

    What a fork makes it does not keep: a test may plant a fault there.
    """
    kept: dict[tuple[object, ...], tuple[Any, Any]] = {}
    here = os.getpid()

    def once(*given: Any) -> Any:
        key = tuple(map(_key, given))
        if key in kept:
            return kept[key][1]
        made = make(*given)
        if os.getpid() == here:
            kept[key] = given, made
        return made

    return once


def _key(given: object) -> object:
    if isinstance(given, Compiled | LocalProgram):
        return id(given)
    if isinstance(given, list | tuple):
        return tuple(map(_key, given))
    return given if isinstance(given, frozenset) else repr(given)


def main() -> None:
    """Compile, and serve; a fork runs its command."""
    gc.set_threshold(*RARELY)
    die_with_parent(os.getppid())
    torch.set_num_threads(1)
    captures.share()
    share()
    importlib.import_module(sys.argv[1]).prepare()
    gc.collect()
    gc.freeze()
    become(Zygote(address_of(os.getpid())).serve())


if __name__ == "__main__":
    main()
