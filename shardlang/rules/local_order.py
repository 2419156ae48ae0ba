"""The order in memory of what a random op draws for: it draws in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def dense_steps(value: Tensor) -> tuple[int, ...]:
    """The steps in memory of what a random op makes for a tensor, in elements per dim.

    They are in the order of the tensor's own steps, but without its gaps and overlaps.
    """
    same = torch.empty_strided(tuple(value.shape), value.stride(), device="meta")
    return tuple(torch.empty_like(same).stride())


def laid(x: Tensor, steps: Sequence[int]) -> Tensor:
    """`x` with the given steps in memory: itself, or a copy where it lies otherwise."""
    if all(n < 2 or a == b for n, a, b in zip(x.shape, x.stride(), steps, strict=True)):
        return x
    return x.new_empty_strided(x.shape, steps).copy_(x)


def drawn_in_order(
    x: Tensor, make: Callable[..., object], steps: Sequence[int], *args: object, **kwargs: object
) -> object:
    """A random op on a whole tensor, which may lie in memory otherwise than in the model."""
    return make(laid(x, steps), *args, **kwargs)
