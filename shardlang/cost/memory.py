"""The bytes that a device holds between steps: leaves, and the state of an optimizer."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Coord
from shardlang.ir.optimizers import UpdateRule, made
from shardlang.ir.precision import wider
from shardlang.runtime.update import lies_apart


def leaf_bytes(leaves: Iterable[Leaf], coord: Coord) -> int:
    """Bytes of some leaves on the device at `coord`, as they lie at rest."""
    return sum(_bytes(leaf, leaf.at_rest, coord) for leaf in leaves)


def state_bytes(
    leaves: Iterable[Leaf],
    coord: Coord,
    rule: UpdateRule,
    master: torch.dtype | None = None,
) -> int:
    """Bytes of what an optimizer keeps for some parameters on the device at `coord`.

    Args:
        rule: the optimizer.
        master: the type of the master weights of narrower parameters, which count too, as do
            other parts on which an optimizer works in memory of their own.
    """
    total = 0
    for leaf in leaves:
        dtype = wider(leaf.dtype, master)
        part_bytes = math.prod(leaf.layout.local_shape(coord)) * dtype.itemsize
        form = _form(rule.name, _hashable(rule.settings_of(leaf.name)), dtype)
        total += form.copies * part_bytes + form.more_bytes
        total += part_bytes if lies_apart(leaf, coord, master) else 0
    return total


@dataclass(frozen=True, slots=True)
class _Form:
    """What an optimizer keeps for a parameter: tensors as large as it, and more bytes."""

    copies: int
    more_bytes: int


def _hashable(settings: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(settings.items()))


@functools.cache
def _form(name: str, settings: tuple[tuple[str, object], ...], dtype: torch.dtype) -> _Form:
    """Found by one update of a small parameter."""
    x = torch.nn.Parameter(torch.zeros(3, 5, dtype=dtype))
    x.grad = torch.zeros_like(x)
    optimizer = made(name, [x], dict(settings))
    optimizer.step()
    states = [value for value in optimizer.state[x].values() if isinstance(value, torch.Tensor)]
    large = [value for value in states if value.shape == x.shape]
    others = sum(value.nbytes for value in states if value.shape != x.shape)
    return _Form(len(large), others)


def _bytes(leaf: Leaf, layout: Layout, coord: Coord) -> int:
    return math.prod(layout.local_shape(coord)) * leaf.dtype.itemsize
