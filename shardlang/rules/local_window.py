"""What devices run where an op slides a window over a split dim: exchange of edges, then the op.

Output index o of such an op reads the input indices from `o * stride - pad` on, `extent` of them.
A device needs for its outputs a window that reaches over the edges of its own piece; it is put
together from the piece and from the other devices' edges. All windows have one length, so that the
row of windows is an evenly split dim like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shardlang.ir.here import PieceAt
from shardlang.ir.layout import DimLayout
from shardlang.ir.pieces import peers


def window_length(outputs: int, extent: int, stride: int) -> int:
    """Length of the window that `outputs` outputs read, in whole strides."""
    return (outputs - 1) * stride + max(extent, stride)


def reach(
    before: DimLayout, after: DimLayout, extent: int, stride: int, pad: int
) -> tuple[int, int]:
    """How far any device's window reaches over the start and the end of its own piece."""
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


def edges(x: Tensor, dim: int, left: int, right: int, ways: int = 1) -> Tensor:
    """What others may need of a piece: its last `left` indices, then its first `right` ones.

    A shorter piece is filled up with zeros, outwards. `ways` pieces of a whole tensor give as many.
    """
    size = x.shape[dim]
    last = x.narrow(dim, size - min(size, left), min(size, left))
    first = x.narrow(dim, 0, min(size, right))
    made = torch.cat(
        [_blank(x, dim, left - min(size, left)), last, first,
         _blank(x, dim, right - min(size, right))], dim,
    )  # fmt: skip
    return torch.cat([made] * ways, dim) if ways > 1 else made


def _blank(x: Tensor, dim: int, size: int, value: float = 0.0) -> Tensor:
    shape = list(x.shape)
    shape[dim] = size
    return x.new_full(shape, value)


def window(
    x: Tensor,
    edges: Tensor | None,
    dim: int,
    length: int,
    reads: Sequence[int],
    fill: float = 0.0,
    ways: int = 1,
    at: PieceAt | None = None,
) -> Tensor:
    """This device's window of `length` indices.

    Args:
        edges: the edges of all devices, one after the other.
        reads: extent, stride and pad of the op, the reach to the left and right, and the global
            number of outputs.
        fill: what stands outside the tensor.
        at: where this device lies in the op's input dim and output dim.
    """
    if at is None:
        return _blank(x, dim, ways * length)
    before, after = at.layout.dims
    _, stride, pad, left, right, _ = reads
    start = before.start(at.coord)
    low = after.start(at.coord) * stride - pad
    high, end = low + length, start + x.shape[dim]
    table = _blank(x, dim, 1, fill)
    if edges is not None:
        table = torch.cat([edges, table], dim)
    find = _Finder(before, peers(at.coord, before.axes), left, right)
    mine = (max(low, min(start, high)), max(low, min(end, high)))
    own = x.narrow(dim, min(max(mine[0] - start, 0), x.shape[dim]), max(mine[1] - mine[0], 0))
    parts = [(low, mine[0]), (mine[1], high)]
    around = [table.index_select(dim, find.rows(a, b, x.device)) for a, b in parts]
    return torch.cat([around[0], own, around[1]], dim)


class _Finder:
    """Finds global indices among the edges of all devices; the last row stands for all others."""

    def __init__(
        self, before: DimLayout, coords: Sequence[dict[str, int]], left: int, right: int
    ) -> None:
        self.left, self.each = left, left + right
        self.blank = self.each * len(coords)
        self.places: dict[int, int] = {}
        for number, coord in enumerate(coords):
            start, size = before.start(coord), before.local_size(coord)
            base = number * self.each + left
            for index in range(min(right, size)):
                self.places[start + index] = base + index
            for index in range(1, min(left, size) + 1):
                self.places[start + size - index] = base - index

    def rows(self, low: int, high: int, device: torch.device) -> Tensor:
        """Rows of the edges that hold the indices from `low` to `high`."""
        found = [self.places.get(index, self.blank) for index in range(low, high)]
        return torch.tensor(found, dtype=torch.int64, device=device)


_CONVOLVE = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dims: Sequence[int],
    sizes: Sequence[int],
) -> Tensor:
    """A convolution over windows; along `dims` only `sizes` outputs are this device's own."""
    act: Any = _CONVOLVE[weight.dim() - 2]
    made: Tensor = act(x, weight, bias, list(stride), list(padding), list(dilation), groups)
    return _own(made, dims, sizes)


def _own(made: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for dim, size in zip(dims, sizes, strict=True):
        made = made.narrow(dim, 0, size)
    return made


def keep(x: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Windows cut down to the indices that are this device's own."""
    return _own(x, dims, sizes)


def pool(
    x: Tensor, op: Any, arguments: Sequence[Any], dims: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """A pooling over windows, as `convolve`."""
    return _own(op(x, *arguments), dims, sizes)
