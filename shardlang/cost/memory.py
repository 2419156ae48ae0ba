"""The bytes that a device holds between steps: leaves, and the state of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Coord
from shardlang.ir.precision import wider

_COPIES = {"adam": 2, "adamw": 2}
"""Tensors as large as the parameter that an optimizer keeps for each."""

_STEP_BYTES = 4
"""Of the tensor in which Adam counts the steps of each parameter."""


def leaf_bytes(leaves: Iterable[Leaf], coord: Coord) -> int:
    """Bytes of some leaves on the device at `coord`, as they lie at rest."""
    return sum(_bytes(leaf, leaf.at_rest, coord) for leaf in leaves)


def state_bytes(
    leaves: Iterable[Leaf],
    coord: Coord,
    name: str,
    options: Mapping[str, object],
    master: torch.dtype | None = None,
) -> int:
    """Bytes of what an optimizer keeps for some parameters on the device at `coord`.

    Args:
        name: `sgd`, `adam` or `adamw`.
        options: its arguments.
        master: the type of the master weights of narrower parameters, which count too.
    """
    parts, weights = [], 0
    for leaf in leaves:
        dtype = wider(leaf.dtype, master)
        parts.append(math.prod(leaf.layout.local_shape(coord)) * dtype.itemsize)
        weights += parts[-1] if dtype != leaf.dtype else 0
    if name not in _COPIES:
        return weights + (sum(parts) if options.get("momentum") else 0)
    copies = _COPIES[name] + bool(options.get("amsgrad"))
    return weights + copies * sum(parts) + _STEP_BYTES * len(parts)


def _bytes(leaf: Leaf, layout: Layout, coord: Coord) -> int:
    return math.prod(layout.local_shape(coord)) * leaf.dtype.itemsize
