"""A call of one op on one device, as it is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shardlang.ir.arguments import Kwargs
from shardlang.ir.compat import AttentionKernels


class NotTraced(Exception):
    """An op that cannot be run on fake shards, or reads a tensor that it keeps."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What a trace needs to know of a tensor: its shape on the device, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class OpCall:
    """A call on one device, with an `Operand` in the place of every tensor.

    Attributes:
        args: positional arguments, nested as in the call.
        kwargs: keyword arguments.
        shards: one per operand.
        wanted: the operands whose gradient is wanted.
        given: the results, counted among the tensors that the op gives, whose cotangent is given.
        device: on which it is made; None for ops that are the same on all.
        kernels: those of attention that are allowed.
    """

    target: Callable[..., object]
    args: tuple[object, ...]
    kwargs: Kwargs
    shards: tuple[Shard, ...]
    wanted: tuple[int, ...]
    given: tuple[int, ...]
    device: torch.device | None = None
    kernels: AttentionKernels | None = None

    def key(self) -> str:
        """Equal for calls of which one trace serves all."""
        return repr(
            (
                getattr(self.target, "__module__", ""),
                getattr(self.target, "__qualname__", str(self.target)),
                self.args,
                self.kwargs,
                self.shards,
                self.wanted,
                self.given,
                self.device,
                self.kernels,
            )
        )
