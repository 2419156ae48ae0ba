"""What autograd hands from the forward of a function to its backward."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from shardlang.runtime.sharding import Sharding


class Context(Protocol):
    """The context of one call; a function adds what it keeps there."""

    def set_materialize_grads(self, value: bool, /) -> None:
        """Whether a gradient that does not come is given as zeros, and not as None."""

    def mark_non_differentiable(self, *made: Tensor) -> None:
        """Say which results have no gradient."""


class WithSharding(Context, Protocol):
    """A context that keeps how a tensor lies."""

    sharding: Sharding
