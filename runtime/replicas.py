"""Checksums of tensors, and the comparison of those that several devices hold alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.ir.layout import Layout
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups, between
from shardlang.runtime.watch import named

SAMPLED_BYTES = 1 << 20
"""Of a tensor with more bytes than this, `SAMPLES` stretches that make up as much are looked at."""

SAMPLES = 64

SAME_BATCHES = (
    "draw batches from a generator that is seeded alike on every rank, and without a"
    " `DistributedSampler`"
)
"""The remedy for ranks whose batches differ."""


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


def check_replicas(
    shards: Mapping[str, tuple[Tensor, Layout]],
    groups: Groups,
    differ: Callable[[str, int, int], RunError] | None = None,
) -> None:
    """Compare those of the tensors that several devices hold alike. Collective.

    Args:
        differ: the error for a tensor, the first rank that holds a shard of it, and another one.

    Raises:
        RunError: SH0611, naming a tensor and the ranks, unless `differ` gives another.
    """
    for name, (first, rank) in _differing(shards, groups).items():
        raise (differ or _replicas_differ)(name, first, rank)


def beyond_rounding(
    shards: Mapping[str, tuple[Tensor, Layout]], groups: Groups
) -> tuple[str, int, int] | None:
    """The first of the tensors whose replicas differ by more than rounding. Collective.

    What every replica computes alike may differ in its last digits: kernels round by the memory
    that they are given, and some add up in no fixed order. That is a difference of up to the square
    root of the dtype's spacing, of the largest value.

    Returns:
        The tensor, the first rank that holds a shard of it, and another one; None if all are alike.
    """
    differing = _differing(shards, groups)
    if not differing:
        return None
    apart = [_is_apart(*shards[name], groups) for name in differing]
    flags = torch.tensor(apart, dtype=torch.int32, device=groups.device)
    named("comparison of the replicas", dist.all_reduce, flags, dist.ReduceOp.MAX)
    pairs = zip(differing.items(), flags.tolist(), strict=True)
    return next(((name, *ranks) for (name, ranks), flag in pairs if flag), None)


def _is_apart(shard: Tensor, layout: Layout, groups: Groups) -> bool:
    """Whether this device's shard differs from one of its replicas by more than rounding."""
    group = groups.of(axis for axis in groups.mesh.axes if axis not in layout.sharded)
    return is_apart(shard, group.process_group)


def is_apart(shard: Tensor, process_group: dist.ProcessGroup | None) -> bool:
    """Whether a tensor differs in a group of processes by more than rounding. Collective."""
    if not (shard.is_floating_point() or shard.is_complex()):
        return True
    values = torch.view_as_real(shard) if shard.is_complex() else shard
    ends = [values.detach().to(torch.float64, copy=True).contiguous() for _ in range(2)]
    for end, op in zip(ends, (dist.ReduceOp.MAX, dist.ReduceOp.MIN), strict=True):
        named("comparison of the replicas", dist.all_reduce, end, op, process_group)
    if not shard.numel():
        return False
    high, low = ends
    most = torch.maximum(high.abs(), low.abs()).max()
    return not bool((high - low).max() <= torch.finfo(values.dtype).eps ** 0.5 * most)


def _differing(
    shards: Mapping[str, tuple[Tensor, Layout]], groups: Groups
) -> dict[str, tuple[int, int]]:
    """The tensors of which two ranks hold other bytes of the same shard, with these ranks."""
    held = set(between(groups.mesh, groups.mesh.axes))
    shards = {name: x for name, x in shards.items() if held.difference(x[1].sharded)}
    if not shards:
        return {}
    found: dict[str, tuple[int, int]] = {}
    mine = torch.tensor([checksum(shard) for shard, _ in shards.values()], device=groups.device)
    rows = [torch.empty_like(mine) for _ in range(groups.mesh.devices)]
    named("comparison of the replicas", dist.all_gather, rows, mine)
    table = torch.stack(rows).tolist()
    for column, (name, (_, layout)) in enumerate(shards.items()):
        holders: dict[tuple[int, ...], int] = {}
        for rank, row in enumerate(table):
            at = groups.mesh.coord(rank)
            first = holders.setdefault(tuple(at[axis.name] for axis in layout.sharded), rank)
            if row[column] != table[first][column]:
                found.setdefault(name, (first, rank))
    return found


def _replicas_differ(name: str, first: int, rank: int) -> RunError:
    return RunError(
        "SH0611",
        f"`{name}` has other values on rank {rank} than on rank {first}, and both hold the same"
        " shard of it",
        help="let the model's constructor draw from torch's, numpy's or Python's global generators,"
        " which are seeded alike on every rank; not from the time, the rank or a generator that is"
        " seeded anew",
    )


def changed_apart(name: str, first: int, rank: int) -> RunError:
    """The error for a tensor of the module that a loop has changed on one rank alone."""
    return RunError(
        "SH0611",
        f"`{name}` has other values on rank {rank} than on rank {first}, and both hold the same"
        " shard of it, which was alike when the module was loaded",
        help="let every rank load the same file, make the same changes to parameters and gradients,"
        " and draw what it changes them by from generators that are seeded alike",
    )


def drifted(name: str, first: int, rank: int) -> str:
    """The warning for a tensor that an optimizer has changed since its replicas were alike."""
    return (
        f"`{name}` has other values on rank {rank} than on rank {first}, by more than rounding,"
        " and both hold the same shard of it. If the loop changes parameters, gradients or buffers"
        " on one rank alone, or by other numbers, let every rank do the same; else a gradient that"
        " is zero but for rounding is rounded apart, and the optimizer enlarges it."
    )


def inputs_differ(name: str, first: int, rank: int) -> RunError:
    """The error for a plain input of which two ranks should pass the same values."""
    return RunError(
        "SH0612",
        f"input `{name}` has other values on rank {rank} than on rank {first}, and both pass the"
        " same shard of it",
        help=f"{SAME_BATCHES}; cut whole batches with `shard_inputs`",
    )
