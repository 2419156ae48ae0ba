"""Copies of what is saved, so that training may go on at once.

A tensor is saved as boxes: an offset in the whole tensor, sizes, and the values there. Boxes say
nothing of the mesh, so whoever loads them takes what lies in boxes of their own. The copies lie in
memory that is kept from save to save, once as much as this device's shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Offsets = tuple[int, ...]


@runtime_checkable
class _InChunks(Protocol):
    """A tensor that says which boxes of it this device holds, as every `DTensor` does."""

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]: ...

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Boxes:
    """What this device saves of one tensor.

    Attributes:
        size: of the whole tensor.
        at: the values by the offsets of their box.
    """

    size: torch.Size
    at: Mapping[Offsets, Tensor]

    @staticmethod
    def of(tensor: Tensor) -> Boxes:
        """The boxes of a tensor, in its own memory."""
        if not isinstance(tensor, _InChunks):
            return Boxes(tensor.shape, {(0,) * tensor.dim(): tensor.detach()})
        offsets = [chunk.offsets for chunk in tensor.__create_chunk_list__()]
        pairs = [(x, tensor.__get_tensor_shard__(MetadataIndex("", x))) for x in offsets]
        return Boxes(tensor.shape, {tuple(x): box.detach() for x, box in pairs})

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=box.shape),
                    properties=TensorProperties.create_from_tensor(box),
                    size=self.size,
                ),
            )
            for offsets, box in self.at.items()
        ]


class BoxPlanner(DefaultSavePlanner):
    """Plans to save boxes; each is written by one of the ranks that hold it."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The values of a box."""
        boxes = self.state_dict[index.fqn]
        assert isinstance(boxes, Boxes) and index.offset is not None
        return boxes.at[tuple(index.offset)]


class Staging:
    """The copies of one save."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, Offsets], Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Boxes]:
        """Copy this device's shards of some tensors; they may change as soon as this returns."""
        before, self._memory = self._memory, {}
        found = {name: Boxes.of(tensor) for name, tensor in tensors.items()}
        made = {
            name: Boxes(
                boxes.size, {x: self._copied(before, name, x, boxes.at[x]) for x in boxes.at}
            )
            for name, boxes in found.items()
        }
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return made

    def _copied(
        self, before: dict[tuple[str, Offsets], Tensor], name: str, at: Offsets, box: Tensor
    ) -> Tensor:
        memory = before.pop((name, at), None)
        if memory is None or memory.shape != box.shape or memory.dtype != box.dtype:
            memory = torch.empty(box.shape, dtype=box.dtype, pin_memory=box.is_cuda)
        self._memory[name, at] = memory
        return memory.copy_(box, non_blocking=box.is_cuda)
