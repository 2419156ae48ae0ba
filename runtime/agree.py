"""Comparing the ranks: what must be the same on all of them, in a few bytes.

Ranks that are called in different ways wait for each other in different collectives, for ever, and
ranks with different batches train on a mixture that nobody asked for.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.ir.layout import Layout
from shardlang.runtime.calls import Call
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.watch import named

SAMPLED_BYTES = 1 << 20
"""Of a tensor with more bytes than this, `SAMPLES` stretches that make up as much are looked at."""

SAMPLES = 64
ON_DEVICE_BATCHES = 3
"""How many batches are compared that lie on a GPU, where looking at them waits for it."""


def checksum(tensor: Tensor) -> int:
    """A number below 2**32 that follows from the bytes of a tensor; of a large one, from a sample.

    Strides do not matter.
    """
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)
    if flat.numel() * flat.element_size() > SAMPLED_BYTES:
        flat = _sampled(flat)
    return zlib.crc32(flat.cpu().view(torch.uint8).numpy().data)


def _sampled(flat: Tensor) -> Tensor:
    """Evenly spaced stretches, the first and the last elements among them."""
    length = max(1, SAMPLED_BYTES // SAMPLES // flat.element_size())
    last = flat.numel() - length
    starts = [last * i // (SAMPLES - 1) for i in range(SAMPLES)]
    return torch.cat([flat[start : start + length] for start in starts])


class Agreement:
    """Compares the calls of all ranks, over a group of the host that no program uses on GPUs."""

    def __init__(self, groups: Groups) -> None:
        """Collective: construct it on every rank."""
        self._world, self._device = groups.mesh.devices, groups.device
        self._numbers: dict[Call, int] = {}
        self._batches = 0
        self._group: Any = None
        if self._world > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo", group_desc="agreement")

    def __deepcopy__(self, memo: dict[int, Any]) -> Agreement:
        """Process groups have no copies."""
        return self

    def check(
        self, call: Call, whole: Mapping[str, Tensor] | None = None, frozen: Sequence[str] = ()
    ) -> None:
        """Compare how all ranks call, and the whole inputs if they are given. Collective.

        Args:
            frozen: the parameters that get no gradient in this call.

        Raises:
            RunError: SH0612, on every rank, naming a rank that differs from rank 0.
        """
        if self._world == 1:
            return
        sums = self._sums(whole) if whole is not None else {}
        mine = [self._number(call), zlib.crc32(repr((sums, frozen)).encode())]
        if not named("comparison of the calls of all ranks", self._same, mine):
            self._refuse([*call.lines(), *(f"`{name}` frozen" for name in frozen)], sums)

    def check_draws(self) -> None:
        """Compare the states of the ranks' random number generators. Collective.

        Raises:
            RunError: SH0612, on every rank: their draws would not be those of one device.
        """
        if self._world == 1:
            return
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        mine = [checksum(state) for state in states]
        if not named("comparison of the random states", self._same, mine):
            raise RunError(
                "SH0612",
                "the ranks draw random numbers from different states, and values that several"
                " devices hold would differ",
                help="call `torch.manual_seed` with the same number on every rank; give draws that"
                " differ between ranks a generator of their own",
            )

    def _number(self, call: Call) -> int:
        if call not in self._numbers:
            digest = hashlib.sha256("\n".join(call.lines()).encode()).digest()
            self._numbers[call] = int.from_bytes(digest[:7], "big")
        return self._numbers[call]

    def _sums(self, whole: Mapping[str, Tensor]) -> dict[str, int]:
        on_host = all(x.device.type == "cpu" for x in whole.values())
        self._batches += not on_host
        if not on_host and self._batches > ON_DEVICE_BATCHES:
            return {}
        return {name: checksum(whole[name]) for name in sorted(whole)}

    def _same(self, numbers: Iterable[int]) -> bool:
        mine = torch.tensor([*numbers])
        both = torch.cat([mine, -mine])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self._group)
        return torch.equal(both[: len(mine)], -both[len(mine) :])

    def _refuse(self, said: list[str], sums: Mapping[str, int]) -> None:
        found: list[Any] = [None] * self._world
        dist.all_gather_object(found, (said, dict(sums)), group=self._group)
        first, values = found[0]
        rank = next(i for i, other in enumerate(found) if other != found[0])
        lines, others = found[rank]
        if lines != first:
            here, there = _first_difference(first, lines)
            raise RunError(
                "SH0612",
                f"the ranks are called in different ways: rank 0 with {here}, rank {rank} with"
                f" {there}",
                help="call the module on every rank with the same sizes, arguments and modes",
            )
        name = next(n for n in values if values[n] != others[n])
        raise RunError(
            "SH0612",
            f"`{name}` has other values on rank {rank} than on rank 0, and `shard_inputs` takes the"
            " same whole batch on every rank",
            help="draw batches from a generator that is seeded alike on every rank, and without a"
            " `DistributedSampler`",
        )


def _first_difference(one: list[str], other: list[str]) -> tuple[str, str]:
    """What one list says and the other does not."""
    here = next((line for line in one if line not in other), "nothing more")
    there = next((line for line in other if line not in one), "nothing more")
    return here, there


def check_replicas(pieces: Mapping[str, tuple[Tensor, Layout]], groups: Groups) -> None:
    """Compare the tensors that several devices hold alike. Collective.

    Raises:
        RunError: SH0611, naming a tensor and the ranks.
    """
    if groups.mesh.devices == 1:
        return
    mine = torch.tensor([checksum(piece) for piece, _ in pieces.values()], device=groups.device)
    rows = [torch.empty_like(mine) for _ in range(groups.mesh.devices)]
    named("comparison of the replicas", dist.all_gather, rows, mine)
    table = torch.stack(rows).tolist()
    for column, (name, (_, layout)) in enumerate(pieces.items()):
        holders: dict[tuple[int, ...], int] = {}
        for rank, row in enumerate(table):
            at = groups.mesh.coord(rank)
            first = holders.setdefault(tuple(at[axis.name] for axis in layout.sharded), rank)
            if row[column] != table[first][column]:
                raise _replicas_differ(name, first, rank)


def _replicas_differ(name: str, first: int, rank: int) -> RunError:
    return RunError(
        "SH0611",
        f"`{name}` has other values on rank {rank} than on rank {first}, and both hold the same"
        " piece of it",
        help="let the model's constructor draw from torch's, numpy's or Python's global generators,"
        " which are seeded alike on every rank; not from the time, the rank or a generator that is"
        " seeded anew",
    )
