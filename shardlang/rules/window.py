"""Ops that slide a window over split dims (convolution, pooling), with an exchange of edges.

`halo` rewrites the op's input: every device gives its edges, these are gathered, and each device
takes from them what its window needs besides its own shard. The gather's gradient is a
reduce-scatter, which brings the gradient of an edge back to its owner; nothing here communicates by
itself. Input and output are split evenly each by itself, so that strides and uneven sizes are no
special cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.ir.device_values import size_at
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.rule import Sharding
from shardlang.ir.shards import peers
from shardlang.rules import local_window
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import place
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, swapped


@dataclass(frozen=True, slots=True)
class Sliding:
    """How an op reads one spatial dim.

    Attributes:
        dim: the dim of the tensor.
        number: its number among the spatial dims, in the names of factors.
        before: its size in the operand.
    """

    dim: int
    number: int
    before: int
    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1

    @property
    def extent(self) -> int:
        """From the first to the last index that one output reads."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def factors(self) -> tuple[str, str, str]:
        """The dim in the operand, in the kernel, and in the result."""
        x, k, y = (f"{letter}{self.number}" for letter in "xky")
        if self.extent == 1 and self.stride == 1 and not self.pad:
            return y, f"{k}!", y
        if self.kernel == self.stride == self.extent and not self.pad and self._divides:
            return f"({y} {k}={self.kernel}!)", f"{k}!", y
        return f"{x}~", f"{k}!", f"{y}@{x}"

    @property
    def _divides(self) -> bool:
        return self.before % self.stride == 0

    def split_in(self, sharding: Sharding) -> bool:
        """Whether windows reach over the edges of shards."""
        layout = sharding.factors.get(f"x{self.number}")
        return layout is not None and bool(layout.axes)


def window_length(outputs: int, extent: int, stride: int) -> int:
    """Length of the window that `outputs` outputs read, in whole strides."""
    return (outputs - 1) * stride + max(extent, stride)


def reach(
    before: DimLayout, after: DimLayout, extent: int, stride: int, pad: int
) -> tuple[int, int]:
    """How far any device's window reaches over the start and the end of its own shard."""
    left = right = 0
    for coord in peers({}, before.axes):
        start, size = before.start(coord), before.local_size(coord)
        low, high = _needed(before, after, coord, extent, stride, pad)
        if low < high:
            left = max(left, start - low)
            right = max(right, high - start - size)
    return left, right


def _needed(
    before: DimLayout, after: DimLayout, coord: dict[str, int], extent: int, stride: int, pad: int
) -> tuple[int, int]:
    """The indices, within the dim, that the outputs of one device read."""
    first, count = after.start(coord), after.local_size(coord)
    low = first * stride - pad
    high = low + (count - 1) * stride + extent if count else low
    return max(low, 0), min(high, before.size)


def per_dim(value: object, count: int) -> list[int]:
    """One number for each spatial dim."""
    given = value if isinstance(value, (list, tuple)) else [value]
    numbers = [number for number in given if isinstance(number, int)]
    assert len(numbers) == len(given), f"{value} are not whole numbers"
    return numbers * count if len(numbers) == 1 else numbers


def halo(
    x: fx.Node, sharding: Sharding, emit: Emit, sliding: Sequence[Sliding], fill: complex = 0.0
) -> fx.Node:
    """The operand with windows in the place of the shards of every split spatial dim."""
    for one in sliding:
        if one.split_in(sharding):
            x = _windows(x, sharding, emit, one, fill)
    return x


def _windows(x: fx.Node, sharding: Sharding, emit: Emit, one: Sliding, fill: complex) -> fx.Node:
    before, after = (sharding.factors[f"{letter}{one.number}"] for letter in "xy")
    count = math.prod(axis.size for axis in before.axes)
    left, right = reach(before, after, one.extent, one.stride, one.pad)
    length = window_length(after.max_local_size(), one.extent, one.stride)
    edges = None
    if left + right:
        edges = emit(local_window.edges, x, one.dim, left, right, count)
    reads = [one.extent, one.stride, one.pad, left, right, after.size]
    shards = [(before.start(at), before.local_size(at)) for at in peers({}, before.axes)]
    return emit(local_window.window, x, edges, one.dim, length, reads, shards, fill)


def _edges_spec(call: Call) -> str:
    dims = names(len(call.shapes[0]))
    at = call.integer("dim")
    return arrow([dims], [swapped(dims, at, f"e@{dims[at]}")])


rule(
    local_window.edges,
    spec=_edges_spec, linear=["x"], localize=lambda call, sharding: call.replace(count=1),
)  # fmt: skip


def _window_spec(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.integer("dim")
    operands = [dims, swapped(dims, at, "e!")][: len(call.shapes)]
    return arrow(operands, [swapped(dims, at, f"w@{dims[at]}")])


def _local_window(call: Call, sharding: Sharding) -> LocalCall:
    """The window needs to know where its device lies in the dim, before and after the op."""
    before = sharding.operand(0).dims[call.integer("dim")]
    after = DimLayout.shard(call.integers("reads")[-1], before.axes)
    return call.replace(start=place(before), output=place(after))


rule(
    local_window.window,
    spec=_window_spec, linear=lambda call: [] if call["fill"] else ["x edges"],
    localize=_local_window,
)  # fmt: skip


def _keep_spec(call: Call) -> str:
    dims = names(len(call.shapes[0]))
    return arrow(
        [dims], [[f"y{i}@{d}" if i in call.integers("dims") else d for i, d in enumerate(dims)]]
    )


def _local_keep(call: Call, sharding: Sharding) -> LocalCall:
    result = sharding.result().dims
    return call.replace(sizes=[size_at(result[dim]) for dim in call.integers("dims")])


rule(local_window.keep, spec=_keep_spec, linear=["x"], localize=_local_keep)


def moved(
    x: fx.Node, sharding: Sharding, emit: Emit, shifts: Sequence[Sliding], fill: complex = 0.0
) -> fx.Node:
    """Split dims padded (or, by less than 0, cut) at either end: windows of the same elements."""
    split = [one for one in shifts if one.split_in(sharding)]
    sizes = [sharding.factors[f"y{one.number}"].size for one in split]
    windows = halo(x, sharding, emit, split, fill)
    return emit(local_window.keep, windows, [one.dim for one in split], sizes)
