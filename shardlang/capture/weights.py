"""Initial weights: the same values for every mesh, without ever holding the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from shardlang.capture.checkpoint import checkpoint_tensors
from shardlang.capture.deferred import TRACED, build_apart, fill, state
from shardlang.capture.held import at
from shardlang.capture.source import ModelSource

Select = Callable[[str, torch.Tensor], torch.Tensor]
"""From a tensor's name and whole value to the part of it to keep."""


def whole(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The `Select` that keeps everything."""
    return tensor


def materialize(source: ModelSource, seed: int, select: Select = whole) -> dict[str, torch.Tensor]:
    """What `select` keeps of every parameter and persistent buffer, tied ones once.

    One whole tensor is held at a time. The values come from the source's checkpoint if it has one,
    of which no more is read than what is kept, and otherwise from its own initialization under
    `seed`; they depend on nothing else. A model whose constructor cannot be recorded (see
    `Deferred`) is built for real, as a whole.
    """
    dtypes = {name: tensor.dtype for name, tensor in state(source.deferred.module)}
    mapped = source.checkpoint is not None
    return {
        name: _kept(select(name, full), None if mapped else full, dtypes[name])
        for name, full in _initial(source, seed)
    }


def load_plain(source: ModelSource, seed: int) -> nn.Module:
    """The ordinary model with the weights that `materialize` gives for the same seed.

    What its constructor draws beside tensors is what the traced program holds.
    """
    module = build_apart(source.build, TRACED, source.deferred.module)
    with torch.no_grad():
        for name, value in _initial(source, seed):
            fill(_tensor(module, name), value)
        for path, value in source.deferred.held(seed):
            fill(at(module, path), value)
    return module


def _initial(source: ModelSource, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and initial values."""
    if source.checkpoint is None:
        return source.deferred.tensors(seed)
    return checkpoint_tensors(source.checkpoint, source.deferred, seed)


def _kept(part: torch.Tensor, full: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`part` in memory of its own, so that `full`, or the file, can be let go of."""
    if part.dtype != dtype:
        return part.to(dtype).contiguous()
    alone = full is not None and (part.numel() == full.numel() or not _shared(part, full))
    return part.contiguous() if alone else part.clone(memory_format=torch.contiguous_format)


def _shared(part: torch.Tensor, full: torch.Tensor) -> bool:
    return part.untyped_storage().data_ptr() == full.untyped_storage().data_ptr()


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that dotted name."""
    owner, _, last = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), last)
    assert isinstance(tensor, torch.Tensor)
    return tensor
