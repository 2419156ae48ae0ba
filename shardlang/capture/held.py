"""Tensors of a model that no state dict holds: plain attributes, and buffers that are not kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import getitem

import torch
from torch import nn

from shardlang.ir.compat import FakeTensor, storage_key

Path = tuple[str | int, ...]
"""A module's dotted name, an attribute's name, and keys into lists and dicts."""

_OWN = frozenset(vars(nn.Module()))


def held_tensors(model: nn.Module) -> Iterator[tuple[Path, torch.Tensor]]:
    """Every such tensor with its place."""
    for name, module in model.named_modules():
        for key in module._non_persistent_buffers_set:
            buffer = module._buffers.get(key)
            if buffer is not None:
                yield (name, key), buffer
        for key, value in vars(module).items():
            if key not in _OWN:
                yield from _within(value, (name, key))


def _within(value: object, path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif type(value) is list or type(value) is tuple:
        for i, item in enumerate(value):
            yield from _within(item, (*path, i))
    elif type(value) is dict:
        for key, item in value.items():
            if isinstance(key, (str, int)):
                yield from _within(item, (*path, key))


def at(model: nn.Module, path: Path) -> torch.Tensor:
    """The tensor at a place of another copy of the model."""
    name, key, *keys = path
    found = reduce(getitem, keys, getattr(model.get_submodule(str(name)), str(key)))
    assert isinstance(found, torch.Tensor)
    return found


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one, or show the same memory in the same way."""
    if one is other:
        return True
    fake = isinstance(one, FakeTensor)
    if fake != isinstance(other, FakeTensor) or not one.numel():
        return False
    places = [(x.shape, x.stride(), x.storage_offset(), x.dtype) for x in (one, other)]
    return places[0] == places[1] and storage_key(one) == storage_key(other)
