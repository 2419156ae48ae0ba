"""Constants and buffers in the memory of a tensor whose values change.

In the plain model they change with it. A program would keep their old values.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import torch

from shardlang.capture.errors import CaptureError
from shardlang.capture.held import Path
from shardlang.capture.shared_memory import overlap
from shardlang.ir.compat import storage_key
from shardlang.ir.leaf import Leaf, LeafKind


def check_aliases(
    leaves: Sequence[Leaf],
    tensors: Mapping[str, torch.Tensor],
    written: Collection[str],
    held: Mapping[str, Path],
) -> None:
    """Raise SH0356 for a tensor that the program reads where another one changes its values.

    A step changes parameters, loading a state dict all that is in it, and the forward what it
    writes.

    Args:
        tensors: by the names of leaves.
        written: the buffers that the forward writes.
        held: where the model holds the constants.
    """
    sharing: dict[int, list[Leaf]] = {}
    for leaf in leaves:
        if leaf.name in tensors:
            sharing.setdefault(storage_key(tensors[leaf.name]), []).append(leaf)
    for group in sharing.values():
        for leaf, other in itertools.permutations(group, 2):
            if leaf.kind not in (LeafKind.BUFFER, LeafKind.CONSTANT):
                continue
            changed = other.name in written or (
                leaf.kind is LeafKind.CONSTANT and _is_loaded(other)
            )
            if changed and overlap(tensors[leaf.name], tensors[other.name]):
                place = ".".join(map(str, held.get(leaf.name, (leaf.name,)))).lstrip(".")
                raise _aliased(leaf, place, other, other.name in written)


def _is_loaded(leaf: Leaf) -> bool:
    """Whether a state dict holds it."""
    return leaf.kind is LeafKind.PARAM or (leaf.kind is LeafKind.BUFFER and leaf.persistent)


def _aliased(leaf: Leaf, place: str, other: Leaf, written: bool) -> CaptureError:
    what = "buffer" if leaf.kind is LeafKind.BUFFER else "attribute"
    whose = "parameter" if other.kind is LeafKind.PARAM else "buffer"
    how = ", which the forward writes" if written else ""
    return CaptureError(
        "SH0356",
        f"the {what} `{place}` shares memory with the {whose} `{other.name}`{how}",
        help=f"use the {whose} itself in `forward`, or make a copy of its own with `.clone()`",
    )
