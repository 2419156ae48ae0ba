"""Ops that slide a window over split dims: convolution, pooling, unfolding.

`halo` puts each device's window in the place of its shard: what its outputs read, its neighbours'
edges included. Input and output are split evenly each by itself, so that strides and uneven sizes
are no special cases. All windows have one length, so that the row of windows is an evenly split dim
like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.reads import Stretch
from shardlang.ir.rule import Sharding
from shardlang.ir.shards import peers
from shardlang.rules.op_rule import Emit
from shardlang.rules.reads import emit_reads


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
    def outputs(self) -> int:
        """How many windows there are, padded alike at both ends."""
        return (self.before + 2 * self.pad - self.extent) // self.stride + 1

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

    def window(self, first: int, count: int) -> tuple[int, int]:
        """The indices that `count` outputs from the first on read; some may lie outside the dim."""
        low = first * self.stride - self.pad
        return low, low + (count - 1) * self.stride + self.extent if count else low


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
            after = sharding.factors[f"y{one.number}"]
            length = (after.max_local_size() - 1) * one.stride + max(one.extent, one.stride)
            windows = [one.window(*span) for span in spans(after)]
            x = emit_windows(emit, x, one, windows, length, fill)
    return x


def spans(dim: DimLayout) -> Iterator[tuple[int, int]]:
    """Start and length of the shards of a contiguous dim, in their order."""
    return ((dim.start(at), dim.local_size(at)) for at in peers({}, dim.axes))


def emit_windows(
    emit: Emit, x: fx.Node, one: Sliding, windows: Sequence[tuple[int, int]], length: int,
    fill: complex = 0.0,
) -> fx.Node:  # fmt: skip
    """Windows one after the other, as long as `length` each."""
    read = [part for low, high in windows for part in _window(low, high, length, one.before)]
    return emit_reads(emit, x, one.dim, one.before, read, fill)


def _window(low: int, high: int, length: int, size: int) -> list[Stretch]:
    """A window from `low` to `high`, filled up to its length; nothing is read outside the dim."""
    first = min(max(low, 0), size)
    inside = range(first, max(min(high, size), first))
    before = min(max(first - low, 0), length) if inside else length
    return [before, inside, length - before - len(inside)]
