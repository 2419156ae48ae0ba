"""How what stages give to others lies on a device: in order, wherever it was made."""

from __future__ import annotations

from collections.abc import Mapping

from shardlang.cost.effects import Held, TensorType, Value
from shardlang.cost.replay import Replay
from shardlang.ir.mesh import Coord
from shardlang.ir.pipeline.staged import StagedStep


def sent_types(step: StagedStep, coord: Coord) -> Mapping[str, TensorType]:
    """The values and gradients that stages give to others, by name.

    A gradient has no layout of its own, so all stages are gone through.

    Args:
        coord: of the device, its microbatch included.
    """
    replay = Replay(step.whole.main, coord, "gloo")
    replay.run()
    sent = {name for stage in step.stages for name in (*stage.values, *stage.gradients)}
    found = ((node.name, value) for node, value in replay.made.items() if node.name in sent)
    return {name: _dense(value) for name, value in found}


def _dense(value: Value) -> TensorType:
    assert isinstance(value, Held) and isinstance(value.type, TensorType), f"{value} is no tensor"
    return TensorType.dense(value.type.shape, value.type.dtype)
