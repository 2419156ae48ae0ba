"""Calls that PyTorch's samples lack: bigger uneven dims, ties, ignored entries, both signs."""

from __future__ import annotations

from collections.abc import Iterator

from shardlang.proof.rules.calls import AtenCall


def own_calls() -> Iterator[AtenCall]:
    """All calls of ours."""
    yield from ()
