"""How what stages give to others lies on a device: in order, wherever it was made."""

from __future__ import annotations

from collections.abc import Mapping

from shardlang.cost.effects import TensorType
from shardlang.cost.shapes import shapes_of
from shardlang.ir.mesh import Coord
from shardlang.ir.pipeline.staged import StagedStep


def sent_types(step: StagedStep, coord: Coord) -> Mapping[str, TensorType]:
    """The values and gradients that stages give to others, by name.

    A gradient has no layout of its own, so all stages are gone through.

    Args:
        coord: of the device, its microbatch included.
    """
    names = {name for stage in step.stages for name in (*stage.values, *stage.gradients)}
    found = shapes_of(step.whole.main, names, coord)
    return {name: TensorType.dense(*lies) for name, lies in found.items()}
