"""What the backward of a program computes again, and what that saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shardlang.cost.replay import Replay
from shardlang.ir.program import LocalProgram
from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import Recompute
from shardlang.passes.step.prices import Prices
from shardlang.plan.memory import step_to_measure
from shardlang.plan.types import Recomputed


def recomputed_of(
    program: LocalProgram,
    written: Callable[[], StepProgram],
    train: bool,
    microbatches: int = 1,
) -> Recomputed | None:
    """What the backward computes again; None where the spec asks for nothing.

    Args:
        program: the one along microbatches, if the step has several.
        written: the step of the program; it is not asked for where nothing is computed again.
    """
    asked = program.step.recompute
    if not train or not (asked.modules or asked.values):
        return None
    step = written()
    options = replace(program.step, recompute=Recompute())
    plain, _ = step_to_measure(replace(program, step=options), train)
    again = {name: copy for name, copy in step.again.items() if name not in plain.again}
    before, after = Prices.of(plain), Prices.of(step)
    nodes = [node for node in plain.graph.nodes if node.name in again]
    flops = microbatches * sum(before.flops(node) for node in nodes)
    saved = _saved(before.replay) - _saved(after.replay)
    return Recomputed(again, flops, saved, microbatches)


def _saved(replay: Replay) -> int:
    return sum(replay.storages[number].bytes for number in replay.saved)
