"""What the ranks of a pipeline send one another in a step, and how long each transfer takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shardlang.cost.effects import TensorType
from shardlang.cost.speeds import Speeds
from shardlang.cost.timeline import Shipment, alike, timeline
from shardlang.ir.mesh import Axis
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.stages.routes import routes_of


def shipments_of(
    step: StagedStep,
    schedule: PipelineSchedule,
    axis: Axis,
    types: Mapping[str, TensorType],
    speeds: Speeds,
) -> Iterator[Shipment]:
    """All transfers between ranks that microbatches make, over each way in the order of the run.

    Args:
        axis: of the pipeline: transfers go over its link.
        types: how what is sent lies, by name.
    """
    order = timeline(schedule, alike).order
    for rank in range(len(schedule.ranks)):
        for way, messages in routes_of(step, schedule, order, rank).arriving.items():
            for one in messages:
                seconds = speeds.sending_s([axis.name], types[one.value].bytes)
                yield Shipment(way, one.made, one.read, seconds)
