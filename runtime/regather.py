"""Gathering a stored parameter again for the backward, instead of keeping it.

What autograd would save of a gathered parameter is replaced by a note of where to gather it from:
the forward then holds no whole parameter past its last use (ZeRO-3; Rajbhandari et al., 2020).
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shardlang.runtime.collectives import RunStep


@dataclass(frozen=True, slots=True)
class Kept:
    """A view of a gathered parameter, as autograd saved it."""

    step: RunStep
    piece: Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def again(self) -> Tensor:
        """Gather the parameter and take the same view of it. Collective."""
        with torch.no_grad():
            whole = self.step.forward(self.piece)
        return whole.as_strided(self.size, self.stride, self.offset)


class Regather:
    """Knows which tensors are gathered parameters while the forward runs."""

    def __init__(self) -> None:
        self._gathered: dict[int, tuple[weakref.ref[Tensor], RunStep, Tensor]] = {}

    def watch(self, step: RunStep) -> WatchedStep:
        """The step, with its results noted."""
        return WatchedStep(step, self)

    def note(self, step: RunStep, piece: Tensor, whole: Tensor) -> None:
        """Remember where a gathered parameter came from."""
        key = whole.untyped_storage().data_ptr()
        self._gathered[key] = (weakref.ref(whole), step, piece.detach())

    def saving(self) -> AbstractContextManager[Any]:
        """Hooks for the forward: what is saved of gathered parameters becomes a note."""
        self._gathered.clear()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Tensor | Kept:
        found = self._gathered.get(tensor.untyped_storage().data_ptr())
        if found is None or found[0]() is None:
            return tensor
        _, step, piece = found
        return Kept(
            step, piece, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        )


def _unpack(saved: Tensor | Kept) -> Tensor:
    return saved.again() if isinstance(saved, Kept) else saved


class WatchedStep:
    """A gather whose result is not to be kept for the backward."""

    def __init__(self, step: RunStep, regather: Regather) -> None:
        self.step, self.regather = step, regather

    def __call__(self, x: Tensor) -> Tensor:
        out = self.step(x)
        self.regather.note(self.step, x, out)
        return out
