"""What lies on a rank of a pipeline over a step, by kind."""

from __future__ import annotations

from torch import fx

from shardlang.cost.composition import LEAVES, Kind, gathered_in, kind_within
from shardlang.cost.pipeline.rank_memory import RankMemory


def kinds_on_rank(memory: RankMemory) -> list[Kind]:
    """The kind of every storage.

    What is sent between stages counts as communication, unless the backward reads it later.
    """
    stages = (memory.step.stages[stage].step for stage in memory.own)
    gathered = {node.name for stage in stages for node in gathered_in(stage)}
    return [_kind_of(memory, number, gathered) for number in range(len(memory.storages))]


def _kind_of(memory: RankMemory, number: int, gathered: set[str]) -> Kind:
    maker = memory.storages[number].maker
    if number in memory.leaves:
        return LEAVES.get(memory.leaves[number], Kind.BUFFERS)
    if number in memory.sums.storages or number in memory.gradients:
        return Kind.GRADIENTS
    if number in memory.totals.storages:
        return Kind.OUTPUTS
    if maker is not None and maker.name in gathered:
        return Kind.GATHERED
    if number in memory.saved:
        return Kind.SAVED
    if number in memory.moved:
        return Kind.COMMUNICATION
    return _within(maker)


def _within(maker: fx.Node | None) -> Kind:
    return Kind.TEMPORARIES if maker is None else kind_within(maker)
