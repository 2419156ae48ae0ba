"""The values and tensors of a state, taken apart for a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.runtime.checkpoint.entries import Entry
from shardlang.runtime.checkpoint.values import encode
from shardlang.runtime.errors import RunError
from shardlang.runtime.tensor_shards import is_sharded

_SMALL_BYTES = 1 << 16


class Collected:
    """Trees of plain values by entry, as JSON, and the tensors that they name.

    Numbers that are tensors, and the states of random generators, stand among the values: these may
    differ between ranks.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[int, str] = {}
        self.trees = {
            name: json.dumps(encode(entry.tree(), name, self._keep))
            for name, entry in entries.items()
        }

    def _keep(self, path: str, tensor: Tensor) -> str | None:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else "sparse"
            raise RunError(
                "SH0663",
                f"`{path}` is a {kind} tensor, which a checkpoint cannot hold",
                help="let `state_dict()` give its dense parts",
            )
        if _is_value(tensor):
            return None
        if id(tensor) not in self._known:
            name = path
            while name in self.tensors:
                name += "'"
            self.tensors[name], self._known[id(tensor)] = tensor, name
        return self._known[id(tensor)]

    def described(self) -> dict[str, str]:
        """Type, shape and layout of every tensor, for a reader."""
        return {name: _described(tensor) for name, tensor in self.tensors.items()}


def _is_value(tensor: Tensor) -> bool:
    if not tensor.dim():
        return True
    small = tensor.dtype is torch.uint8 and tensor.numel() <= _SMALL_BYTES
    return small and not isinstance(tensor, DTensor)


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    lies = tensor.sharding.layout if is_sharded(tensor) else list(tensor.shape)
    return f"{dtype} {lies}"
