"""What one device reads of a batch: its own rows, as the layouts of the inputs say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.shards import shard_of
from shardlang.runtime.data.batch import Batch
from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.samples import Samples
from shardlang.runtime.data.stream import Stream
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import sharded
from shardlang.runtime.watch import named


class DeviceReader:
    """Reads the samples of which a device holds a part, and gives its shard of each input.

    An input that no axis splits is read whole, and given as a plain tensor.
    """

    def __init__(self, inputs: Mapping[str, Sharding]) -> None:
        """`inputs` lie as the program takes them; rows of a batch are along their first dims."""
        self._inputs = inputs

    def read(self, samples: Samples, numbers: Numbers) -> dict[str, Tensor]:
        """This device's shard of every input."""
        dims = {name: (x.layout.dims[0], x.groups.coord) for name, x in self._inputs.items()}
        rows = {name: np.array(dim.indices(at), dtype=np.int64) for name, (dim, at) in dims.items()}
        found: dict[str, Tensor] = {}
        for mine, names in _by_rows(rows):
            for name, part in samples.read(numbers[mine], names).items():
                found[name] = self._shard(name, part)
        return found

    def _shard(self, name: str, rows: Tensor) -> Tensor:
        """This device's part of its rows along all other dims."""
        lies = self._inputs[name]
        whole = Layout((DimLayout.whole(rows.shape[0]), *lies.layout.dims[1:]))
        return shard_of(rows, whole, lies.groups.coord).contiguous()

    def give(self, read: Mapping[str, Tensor], size: int) -> Batch:
        """Tensors of the whole shape that hold this device's shards."""
        return {name: self._given(x, self._inputs[name]) for name, x in read.items()}

    def _given(self, held: Tensor, lies: Sharding) -> Tensor:
        return sharded(held.to(lies.groups.device), lies) if lies.split else held


class OwnRows(dict[str, object]):
    """A batch of whole shapes, in which a device's own rows alone are filled.

    Attributes:
        held: by the name of an input, the device's own rows.
    """

    def __init__(self, read: Mapping[str, Tensor], held: Mapping[str, HeldRows]) -> None:
        super().__init__(read)
        self.held = held


@dataclass(frozen=True, slots=True)
class HeldRows:
    """The rows of an input that a device holds.

    Attributes:
        numbers: which of the batch, ascending.
        devices: how many hold the same ones.
    """

    numbers: Numbers
    devices: int
    groups: Groups


class MicrobatchReader:
    """Reads the rows that a device holds of each microbatch; those of others stay empty."""

    def __init__(
        self, inputs: Mapping[str, Layout], coords: Sequence[Coord], groups: Groups
    ) -> None:
        """`coords` are the device's coordinates, one for each microbatch."""
        dims = {name: layout.dims[0] for name, layout in inputs.items()}
        self._rows = {name: _any_rows(dim, coords) for name, dim in dims.items()}
        self._held = {
            name: HeldRows(self._rows[name], _alike(dim, groups), groups)
            for name, dim in dims.items()
        }

    def read(self, samples: Samples, numbers: Numbers) -> dict[str, Tensor]:
        """Every input, with this device's rows in it; the pages of others are never touched."""
        found: dict[str, Tensor] = {}
        for mine, names in _by_rows(self._rows):
            for name, part in samples.read(numbers[mine], names).items():
                found[name] = _spread(part, mine, len(numbers))
        return found

    def give(self, read: Mapping[str, Tensor], size: int) -> Batch:
        """The same, marked as this device's own."""
        return OwnRows(read, self._held)


def _spread(rows: Tensor, places: Numbers, size: int) -> Tensor:
    """Rows at their places in a batch of zeros."""
    if len(places) == size:
        return rows
    whole = torch.from_numpy(np.zeros((size, *rows.shape[1:]), rows.numpy().dtype))
    whole[torch.from_numpy(places)] = rows
    return whole


def _any_rows(dim: DimLayout, coords: Sequence[Coord]) -> Numbers:
    """The rows of a batch that a device holds at some coordinates, each once and ascending."""
    return np.unique(np.array([row for at in coords for row in dim.indices(at)], dtype=np.int64))


def _alike(dim: DimLayout, groups: Groups) -> int:
    """How many devices hold the same rows, in all microbatches together."""
    split = {axis.name for axis in dim.axes}
    return math.prod(axis.size for axis in groups.mesh.axes if axis.name not in split)


def _by_rows(rows: Mapping[str, Numbers]) -> Iterator[tuple[Numbers, list[str]]]:
    """The inputs together of which the same rows are read."""
    groups: dict[bytes, list[str]] = {}
    for name, mine in rows.items():
        groups.setdefault(mine.tobytes(), []).append(name)
    for names in groups.values():
        yield rows[names[0]], names


def check_same_data(stream: Stream, groups: Groups) -> None:
    """Compare what the ranks read, and from which place on. Collective.

    Raises:
        RunError: SH0612, on every rank, naming one that differs from rank 0.
    """
    if groups.mesh.devices == 1:
        return
    mine = stream.state_dict()
    found: list[dict[str, object]] = [mine] * groups.mesh.devices
    gather: Callable[..., None] = dist.all_gather_object
    named("comparison of the data of all ranks", gather, found, mine)
    other = next((rank for rank, state in enumerate(found) if state != found[0]), None)
    if other is not None:
        key = next(key for key in found[0] if found[0][key] != found[other].get(key))
        raise RunError(
            "SH0612",
            f"rank {other} reads other data than rank 0: its `{key}` is {found[other].get(key)},"
            f" and that of rank 0 is {found[0][key]}",
            help="give every node the same files",
        )
