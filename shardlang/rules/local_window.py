"""What devices run where an op slides a window over a split dim: exchange of edges, then the op.

Output index o of such an op reads the input indices from `o * stride - pad` on, `extent` of them.
A device needs for its outputs a window that reaches over the edges of its own shard; it is put
together from the shard and from the other devices' edges. All windows have one length, so that the
row of windows is an evenly split dim like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def edges(x: Tensor, dim: int, left: int, right: int, count: int = 1) -> Tensor:
    """What others may need of a shard: its last `left` indices, then its first `right` ones.

    A shorter shard is filled up with zeros, outwards. `count` shards of a whole tensor give as many
    edges.
    """
    size = x.shape[dim]
    last = x.narrow(dim, size - min(size, left), min(size, left))
    first = x.narrow(dim, 0, min(size, right))
    made = torch.cat(
        [_blank(x, dim, left - min(size, left)), last, first,
         _blank(x, dim, right - min(size, right))], dim,
    )  # fmt: skip
    return torch.cat([made] * count, dim) if count > 1 else made


def _blank(x: Tensor, dim: int, size: int, value: complex = 0.0) -> Tensor:
    shape = list(x.shape)
    shape[dim] = size
    return x.new_full(shape, value)


def window(
    x: Tensor,
    edges: Tensor | None,
    dim: int,
    length: int,
    reads: Sequence[int],
    shards: Sequence[tuple[int, int]],
    fill: complex = 0.0,
    start: int | None = None,
    output: int = 0,
) -> Tensor:
    """This device's window of `length` indices; of a whole tensor, room for all windows.

    Args:
        edges: the edges of all devices, one after the other.
        reads: extent, stride and pad of the op, the reach to the left and right, and the global
            number of outputs.
        shards: start and length of the shards of all devices.
        fill: what stands outside the tensor.
        start: first index of this device's shard.
        output: first output of this device.
    """
    if start is None:
        return _blank(x, dim, len(shards) * length)
    _, stride, pad, left, right, _ = reads
    low = output * stride - pad
    high, end = low + length, start + x.shape[dim]
    first, last = max(low, min(start, high)), max(low, min(end, high))
    own = x.narrow(dim, min(max(first - start, 0), x.shape[dim]), max(last - first, 0))
    table = _blank(x, dim, 1, fill)
    if edges is not None:
        table = torch.cat([edges, table], dim)
    around = [
        table.index_select(dim, torch.tensor(rows, dtype=torch.int64, device=x.device))
        for rows in (
            edge_rows(low, first, shards, left, right),
            edge_rows(last, high, shards, left, right),
        )
    ]
    return torch.cat([around[0], own, around[1]], dim)


def edge_rows(
    low: int, high: int, shards: Sequence[tuple[int, int]], left: int, right: int
) -> list[int]:
    """Rows of the edges of all `shards` that hold the indices from `low` to `high`.

    The row after the last stands for indices that no edge holds.
    """
    each = left + right
    rows = [each * len(shards)] * max(high - low, 0)
    for number, (start, size) in enumerate(shards):
        base = number * each + left
        for index in range(max(low, start), min(high, start + size)):
            if index - start < right:
                rows[index - low] = base + index - start
            elif start + size - index <= left:
                rows[index - low] = base + index - start - size
    return rows


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
    act: Callable[..., Tensor] = _CONVOLVE[weight.dim() - 2]
    made = act(x, weight, bias, list(stride), list(padding), list(dilation), groups)
    return _own(made, dims, sizes)


def _own(made: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for dim, size in zip(dims, sizes, strict=True):
        made = made.narrow(dim, 0, size)
    return made


def keep(x: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Windows cut down to the indices that are this device's own."""
    return _own(x, dims, sizes)


def pool(
    x: Tensor,
    op: Callable[..., Tensor],
    arguments: Sequence[object],
    dims: Sequence[int],
    sizes: Sequence[int],
) -> Tensor:
    """A pooling over windows, as `convolve`."""
    return _own(op(x, *arguments), dims, sizes)
