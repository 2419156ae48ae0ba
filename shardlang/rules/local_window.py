"""What devices run where an op slides a window over a split dim, on the window that it reads.

All windows have one length, and a device may need fewer outputs than its window gives: `sizes` says
how many are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_CONVOLVE = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


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


def convolve_transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    dims: Sequence[int],
    sizes: Sequence[int],
    starts: Sequence[Sequence[int]],
    parts: Sequence[int] | None = None,
) -> Tensor:
    """A transposed convolution over windows.

    Args:
        starts: along each of `dims`, by part, which output of a window is the part's first.
        parts: along each, which part is this device's; of a whole tensor, none.
    """
    act: Callable[..., Tensor] = _TRANSPOSED[weight.dim() - 2]
    shifts = list(stride), list(padding), list(output_padding)
    made = act(x, weight, bias, *shifts, groups, list(dilation))
    for i, dim in enumerate(dims):
        made = made.narrow(dim, starts[i][parts[i]] if parts is not None else 0, sizes[i])
    return made


def _own(made: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for dim, size in zip(dims, sizes, strict=True):
        made = made.narrow(dim, 0, size)
    return made


def pool(
    x: Tensor,
    op: Callable[..., Tensor],
    arguments: Sequence[object],
    dims: Sequence[int],
    sizes: Sequence[int],
) -> Tensor:
    """A pooling over windows, as `convolve`."""
    return _own(op(x, *arguments), dims, sizes)


def unfolded(x: Tensor, dim: int, size: int, step: int, count: int) -> Tensor:
    """`unfold` over windows, of which `count` results are this device's own."""
    return x.unfold(dim, size, step).narrow(dim, 0, count)


def patches(
    x: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
    rows: int,
    columns: int,
) -> Tensor:
    """`im2col` over windows of rows, of which `rows` rows of patches are this device's own."""
    made: Tensor = torch.ops.aten.im2col.default(x, kernel_size, dilation, padding, stride)
    return made.narrow(-1, 0, rows * columns)


def differences(x: Tensor, dim: int, order: int, count: int) -> Tensor:
    """`diff` of windows, of which `count` results are this device's own."""
    return x.diff(order, dim).narrow(dim, 0, count)
