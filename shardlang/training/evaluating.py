"""When a run is evaluated, and on what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shardlang.compiler.driver import Compiled
from shardlang.runtime.data import Stream
from shardlang.runtime.trainer.evaluation import Evaluating
from shardlang.training.data import evaluation_stream, stated_data


def evaluating_of(compiled: Compiled, seed: int, data: Path | None = None) -> Evaluating | None:
    """What the spec's `evaluate` says; None where it says nothing.

    Its batches are those of its own file, else those that the run's data keeps for it.

    Args:
        data: the file of the run, in place of the spec's.

    Raises:
        RunError: as for the batches of a run; now, and not when it is first evaluated.
    """
    stated = compiled.spec.evaluate
    if stated is None:
        return None
    source = stated.source
    read = replace(compiled, spec=replace(compiled.spec, data=stated_data(compiled, data)))

    def batches() -> Stream:
        return evaluation_stream(read, seed, source)

    batches().close()
    return Evaluating(stated.every, stated.batches, batches)
