"""The comparison of initial values, of which each rank makes or reads all and keeps its shards.

Where no two ranks keep the same shard, nothing that they keep can be compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.replicas import checksum, is_apart
from shardlang.runtime.watch import named

STRETCHES, STRETCH = 4, 256
"""What is looked at of a large tensor: a few evenly spaced stretches of so many elements."""

_LABEL = "comparison of the initial values of all ranks"

_Sums = Mapping[str, tuple[str, int, int]]
"""By name: the dtype, how many elements were looked at, and their checksum."""


class InitialValues:
    """What was looked at of each initial value, before it was cut."""

    def __init__(self) -> None:
        self._samples: dict[str, Tensor] = {}

    def note(self, name: str, full: Tensor) -> None:
        """Look at a whole tensor; of one that is mapped from a file, little is read."""
        self._samples[name] = _sample(full.detach()).cpu()

    def check(self, groups: Groups) -> None:
        """Compare what the ranks have looked at. Collective.

        Kernels of another processor round otherwise: that is no difference.

        Raises:
            RunError: SH0611, on every rank, naming a tensor and a rank that has other values.
        """
        host = groups.on_host()
        if host is None:
            return
        sums = {n: (str(x.dtype), x.numel(), checksum(x)) for n, x in self._samples.items()}
        total = zlib.crc32(repr(sums).encode())
        ends = torch.tensor([total, -total])
        named(_LABEL, dist.all_reduce, ends, dist.ReduceOp.MAX, host.process_group)
        if ends[0] == -ends[1]:
            return
        found: list[_Sums] = [sums] * groups.mesh.devices
        named(_LABEL, dist.all_gather_object, found, sums, host.process_group)
        for name in dict.fromkeys(name for one in found for name in one):
            kinds = {one[name][:2] if name in one else None for one in found}
            other = next((i for i, one in enumerate(found) if _differ(name, one, found[0])), None)
            if other is None:
                continue
            if len(kinds) > 1 or is_apart(self._samples[name], host.process_group):
                raise _begins_apart(name, other)


def _sample(full: Tensor) -> Tensor:
    """A few elements, in memory of their own; the first and the last are among them."""
    count = full.numel()
    if count <= STRETCHES * STRETCH:
        return full.reshape(-1).clone()
    starts = torch.arange(STRETCHES) * (count - STRETCH) // (STRETCHES - 1)
    at = (starts[:, None] + torch.arange(STRETCH)).view(-1)
    return full[torch.unravel_index(at, full.shape)]


def _differ(name: str, one: _Sums, other: _Sums) -> bool:
    return one.get(name) != other.get(name)


def _begins_apart(name: str, rank: int) -> RunError:
    return RunError(
        "SH0611",
        f"`{name}` begins with other values on rank {rank} than on rank 0",
        help="give every node the same model file, weights and seed; let the model's constructor"
        " draw from torch's, numpy's or Python's global generators, which are seeded alike on"
        " every rank",
    )
