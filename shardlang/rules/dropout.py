"""Dropout in two steps: which elements are kept, which is drawn, and what they become.

So what a device holds of a dropout is the mask, and whoever has that makes the rest without a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.rules.local import cut_out
from shardlang.rules.local_shape import Place
from shardlang.rules.schema import Operator
from shardlang.rules.streams import dropped_apart, dropped_with_mask_apart, kept_apart, scaled

aten = torch.ops.aten


def kept(x: Tensor, p: float, train: bool | None = True) -> Tensor:
    """Which elements `aten.dropout` keeps of a tensor."""
    mask: Tensor = aten.dropout(torch.ones_like(x), p, True) != 0
    return mask


def kept_features(x: Tensor, p: float, train: bool | None = True) -> Tensor:
    """Which features `aten.feature_dropout` keeps; dims after the second have one element."""
    drawn: Tensor = aten.feature_dropout(torch.ones_like(x), p, True) != 0
    first = (slice(None), slice(None), *[slice(1)] * (x.dim() - 2))
    return drawn[first].clone()


def kept_natively(x: Tensor, p: float, train: bool | None = True) -> Tensor:
    """The mask of `aten.native_dropout`."""
    mask: Tensor = aten.native_dropout(torch.ones_like(x), p, True)[1]
    return mask


def kept_at(
    x: Tensor,
    make: Callable[..., Tensor],
    at: Sequence[Place],
    shape: Sequence[int],
    strides: Sequence[int],
    p: float,
) -> Tensor:
    """This device's shard of the mask that one device would draw for the whole."""
    ones = x.new_empty_strided(shape, strides).fill_(1)
    return cut_out(make(ones, p, True), at, x.shape) != 0


def kept_natively_at(
    x: Tensor, at: Sequence[Place], shape: Sequence[int], strides: Sequence[int], p: float
) -> Tensor:
    """The same, of `aten.native_dropout`."""
    ones = x.new_empty_strided(shape, strides).fill_(1)
    return cut_out(aten.native_dropout(ones, p, True)[1], at, x.shape).clone()


def thinned(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """What is kept of `x`, so that its mean stays: as `aten.dropout` on the device of `x`."""
    if p == 1 or x.device.type != "cpu":
        return scaled(x, mask, p)
    return x * mask.to(x.dtype).div_(1 - p)


def dropped(
    x: Tensor,
    make: Callable[..., Tensor],
    at: Sequence[Place],
    shape: Sequence[int],
    strides: Sequence[int],
    p: float,
) -> Tensor:
    """Dropout by this device's shard of the mask that one device would draw for the whole."""
    return thinned(x, kept_at(x, make, at, shape, strides, p), p)


def dropped_with_mask(
    x: Tensor, at: Sequence[Place], shape: Sequence[int], strides: Sequence[int], p: float
) -> tuple[Tensor, Tensor]:
    """Dropout and its mask, as `dropped`."""
    mask = kept_natively_at(x, at, shape, strides, p)
    return scaled(x, mask, p), mask


@dataclass(frozen=True, slots=True)
class Parts:
    """The two steps of a dropout.

    Attributes:
        mask: draws the mask, from the arguments of the dropout.
        thin: makes the result of `x`, the mask and the probability; and the gradient of `x` of that
            of the result.
        gives_mask: the mask is the second result.
    """

    mask: Operator
    thin: Operator
    gives_mask: bool = False


PARTS: dict[Operator, Parts] = {
    aten.dropout.default: Parts(kept, thinned),
    aten.feature_dropout.default: Parts(kept_features, thinned),
    aten.native_dropout.default: Parts(kept_natively, scaled, gives_mask=True),
    dropped: Parts(kept_at, thinned),
    dropped_with_mask: Parts(kept_natively_at, scaled, gives_mask=True),
    dropped_apart: Parts(kept_apart, scaled),
    dropped_with_mask_apart: Parts(kept_apart, scaled, gives_mask=True),
}
"""Every dropout that a program may call while it trains."""
