"""When a run is evaluated, and on what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shardlang.compiler.driver import Compiled
from shardlang.runtime.agree import Agreement
from shardlang.runtime.data import LABELS, Reader, Stream
from shardlang.runtime.data.rows import check_same_data
from shardlang.runtime.errors import concerning
from shardlang.runtime.module import held
from shardlang.runtime.trainer.evaluation import Evaluating
from shardlang.runtime.trainer.trainees import ShardedTrainee
from shardlang.training.data import evaluation_stream, stated_data


@dataclass(frozen=True, slots=True)
class _Reading:
    """How the batches are read.

    Attributes:
        parts: how many parts of a batch are read one after the other, each a batch by itself.
        reader: what this device reads of a part; None for all of it.
    """

    parts: int = 1
    reader: Reader | None = None


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
    how = _Reading() if stated_data(read, source) is None else _reading(compiled, trainee)

    def batches() -> Stream:
        return evaluation_stream(read, seed, source, how.reader, how.parts)

    with concerning("evaluate"):
        if trainee is None:
            batches().close()
        else:
            groups = held(trainee.sharded).groups
            check_same_data(Agreement(groups).together(batches), groups)
    labels = LABELS if known is None else known.labels
    return Evaluating(stated.every, how.parts * stated.batches, batches, labels)


def _reading(compiled: Compiled, trainee: ShardedTrainee | None) -> _Reading:
    """Each device reads its own rows, of each microbatch where these are equal parts of a batch.

    A pipeline takes whole batches: all their microbatches are in its stages at once.
    """
    stated = compiled.spec.accumulate
    parts = 1 if stated is None else stated.count
    rows, left = divmod(compiled.inputs[0].shape[0], parts)
    if left or compiled.spec.pipeline is not None:
        return _Reading()
    return _Reading(parts, None if trainee is None else trainee.part_reader(rows))
