"""The bytes that reduce a partial sum, and those that its passing on costs elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import fx

from shardlang.cost.paths import reshard_bytes
from shardlang.cost.reshards import expected_bytes
from shardlang.cost.splits import change_bytes
from shardlang.ir.graph import result_layout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of
from shardlang.ir.reshard import Reshard

Axes = tuple[Axis, ...]


def all_reduce_bytes(value: fx.Node, axes: Axes) -> float:
    """Forward bytes that make a value whole which is a partial sum over some axes."""
    whole = result_layout(value).without(axes)
    itemsize = tensor_of(value).dtype.itemsize
    return reshard_bytes(_summed(whole, axes), Layout(whole.dims), itemsize, False)


def scatter_bytes(value: fx.Node, wanted: Layout, axes: Axes, *, backward: bool) -> float:
    """Bytes that split a partial sum over some axes as a reader wants it, at most an all-reduce.

    Args:
        wanted: the layout that the reader wants; what it says of other axes is left out.
        backward: count the gradient too, which is gathered.
    """
    whole = result_layout(value).without(axes)
    dims = (
        want.only((*have.axes, *(axis for axis in want.axes if axis in axes)))
        for have, want in zip(whole.dims, wanted.dims, strict=True)
    )
    diff = backward and info(value).differentiable
    itemsize = tensor_of(value).dtype.itemsize
    found = reshard_bytes(_summed(whole, axes), Layout(tuple(dims)), itemsize, diff)
    return found if math.isfinite(found) else all_reduce_bytes(value, axes)


def gather_bytes(value: fx.Node, axes: Axes) -> float:
    """Bytes that make a value whole along some axes, its gradient's included."""
    return change_bytes(
        result_layout(value), result_layout(value).without(axes).unlabelled(), value
    )


def vary_bytes(value: fx.Node, axes: Axes) -> float:
    """Bytes that all-reduce the gradient of a whole value, of which every device has a part."""
    layout = Layout(result_layout(value).without(axes).dims)
    varying = Layout(layout.dims, varying=frozenset(axes))
    diff = info(value).differentiable
    return expected_bytes(Reshard(axes, layout, varying), tensor_of(value).dtype.itemsize, diff)


def _summed(layout: Layout, axes: Iterable[Axis]) -> Layout:
    return Layout(layout.dims, frozenset(axes))
