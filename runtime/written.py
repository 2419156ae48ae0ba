"""Writing several tensors at the end of a call."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def write_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the second tensor of each pair into the first; all are read before one is written.

    A new value may be another of these tensors as it was, such as statistics that are kept before
    they are brought up to date.
    """
    pairs = list(pairs)
    written = {target.untyped_storage()._cdata for target, _ in pairs}
    read = [x.clone() if x.untyped_storage()._cdata in written else x for _, x in pairs]
    for (target, _), value in zip(pairs, read, strict=True):
        target.copy_(value)
