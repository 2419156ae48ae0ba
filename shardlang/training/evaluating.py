"""When a run is evaluated, and on what."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from shardlang.compiler.driver import Compiled
from shardlang.runtime.agree import Agreement
from shardlang.runtime.data import LABELS, SampleStream, Stream
from shardlang.runtime.data.rows import check_same_data
from shardlang.runtime.errors import concerning
from shardlang.runtime.module import held
from shardlang.runtime.trainer.evaluation import Evaluating
from shardlang.runtime.trainer.trainees import ShardedTrainee
from shardlang.training.data import evaluation_stream, stated_data


def evaluating_of(
    compiled: Compiled,
    seed: int,
    data: Path | None = None,
    trainee: ShardedTrainee | None = None,
) -> Evaluating | None:
    """What the spec's `evaluate` says; None where it says nothing.

    Its batches are those of its own file, else those that the run's data keeps for it.

    Args:
        data: the file of the run, in place of the spec's.
        trainee: what is evaluated, of which each device then reads its own rows. Collective.

    Raises:
        RunError: as for the batches of a run; now, and not when it is first evaluated.
    """
    stated = compiled.spec.evaluate
    if stated is None:
        return None
    known, source = stated_data(compiled, data), stated.source
    read = replace(compiled, spec=replace(compiled.spec, data=known))
    own = trainee if stated_data(read, source) is not None else None
    reader = None if own is None else own.reader()

    def batches() -> Stream:
        return evaluation_stream(read, seed, source, reader)

    with concerning("evaluate"):
        if trainee is None:
            batches().close()
        else:
            groups = held(trainee.sharded).groups
            stream = Agreement(groups).together(batches)
            check_same_data(stream, groups)
            if groups.rank == 0:
                warn_of_shortfall(stream, stated.batches)
    labels = LABELS if known is None else known.labels
    return Evaluating(stated.every, stated.batches, batches, labels)


def warn_of_shortfall(stream: Stream, count: int) -> None:
    """Say which samples the evaluations leave out, or read twice, as the data ends."""
    said = stream.shortfall(count) if isinstance(stream, SampleStream) else ""
    if said:
        warnings.warn(f"`evaluate`: {said}", RuntimeWarning, stacklevel=2)
