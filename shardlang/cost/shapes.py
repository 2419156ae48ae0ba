"""Shapes and types of values of a step on one device, those of the backward included."""

from __future__ import annotations

from collections.abc import Collection

import torch

from shardlang.cost.effects import Held, TensorType
from shardlang.cost.live import replayed
from shardlang.ir.mesh import Coord
from shardlang.ir.step import StepProgram

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Local shape and type by the name of the value."""


def shapes_of(step: StepProgram, names: Collection[str], coord: Coord) -> Shapes:
    """Those of some values that are tensors, at a coordinate."""
    found = Shapes()
    for node, value in replayed(step, coord).made.items():
        if node.name in names and isinstance(value, Held) and isinstance(value.type, TensorType):
            found[node.name] = value.type.shape, value.type.dtype
    return found
