"""Types, layouts and collectives, as explanations put them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, Stored
from shardlang.ir.mesh import Axis
from shardlang.ir.node import tensor_of
from shardlang.ir.printed_type import printed_type
from shardlang.ir.reshard import Reshard
from shardlang.plan.text import bytes_text, shape_text
from shardlang.plan.types import CollectiveRow


def type_text(dtype: torch.dtype, layout: Layout) -> str:
    """A type, and the shape on the device that has the most of it."""
    return f"{printed_type(dtype, layout)}, local {shape_text(layout.max_local_shape())}"


def parts_text(leaf: Leaf) -> str:
    """What of a parameter is split where its value is not."""
    return "optimizer state" if leaf.splits is Stored.OPTIMIZER else "gradient and optimizer state"


def state_text(layout: Layout, axis: Axis) -> str:
    """What a value does along an axis."""
    dim = layout.dim_of(axis)
    if dim is not None:
        return f"{axis} splits dim {dim}"
    if axis in layout.partial:
        return f"a partial sum over {axis}"
    return f"whole over {axis}"


def ends_text(value: fx.Node, reshard: Reshard) -> str:
    """The types of a value before and after a change of layout."""
    dtype = tensor_of(value).dtype
    return f"from {printed_type(dtype, reshard.src)} to {printed_type(dtype, reshard.dst)}"


def titled(tensors: Sequence[str]) -> str:
    """What a collective moves, in a few names."""
    more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    return ", ".join(tensors[:3]) + more


def row_text(row: CollectiveRow) -> str:
    """A row of the plan in one line."""
    axes = "*".join(row.axes)
    where = f" in `{row.module}`" if row.module else ""
    return f"{row.phase} {row.op} over {axes}{where}, {bytes_text(row.bytes)}: {row.reason}"
