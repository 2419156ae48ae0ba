"""Dropout of one tensor split over n devices, on one of them: exact draws, fast draws, no split.

Forward and backward in eager mode on one thread. Rounds are interleaved; a ratio is of one round,
against the plain dropout of the whole tensor. Memory is the peak above what was there before
(`VmHWM`, reset by `/proc/self/clear_refs`), in units of this device's shard of the tensor.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shardlang.rules import streams
from shardlang.rules.dropout import dropped

ROWS, COLUMNS, P = 4096, 2048, 0.1
_MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` of glibc: larger blocks go back to the system when they are freed."""
aten: Any = torch.ops.aten
Dropout = Callable[[Tensor], Tensor]


def exact(x: Tensor) -> Tensor:
    """What `random exact` runs."""
    shape = (ROWS, COLUMNS)
    return dropped(x, aten.dropout.default, [0, 0], shape, (COLUMNS, 1), P)


def fast(x: Tensor) -> Tensor:
    """What `random fast` runs, with the key of one run for each draw."""
    return streams.dropped_apart(x, streams.stream_key(), 0, 0, P)


def plain(x: Tensor) -> Tensor:
    """The model's own dropout."""
    dropped: Tensor = aten.dropout.default(x, P, True)
    return dropped


def step(dropout: Dropout, x: Tensor) -> None:
    """Forward and backward."""
    x.grad = None
    dropout(x).backward(torch.ones(()).expand(x.shape))  # type: ignore[no-untyped-call]


def seconds(dropout: Dropout, x: Tensor) -> float:
    """The time of one step."""
    start = time.perf_counter()
    step(dropout, x)
    return time.perf_counter() - start


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak_bytes(dropout: Dropout, x: Tensor) -> int:
    """The most memory that one step takes beyond what is there."""
    x.grad = None
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(dropout, x)
    return _status("VmHWM") - before


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)
    whole = torch.randn(ROWS, COLUMNS).requires_grad_()
    print("devices  exact/whole  fast/whole  fast/exact  peak exact  peak fast")
    for devices in (1, 2, 4, 8):
        part = torch.randn(ROWS // devices, COLUMNS).requires_grad_()
        for dropout in (exact, fast):
            step(dropout, part)
        ratios = []
        for _ in range(rounds):
            base = seconds(plain, whole)
            mine = seconds(exact, part), seconds(fast, part)
            ratios.append((mine[0] / base, mine[1] / base, mine[1] / mine[0]))
        medians = [statistics.median(each) for each in zip(*ratios, strict=True)]
        unit = part.numel() * part.element_size()
        peaks = [peak_bytes(dropout, part) / unit for dropout in (exact, fast)]
        print(
            f"{devices:7}  {medians[0]:11.2f}  {medians[1]:10.2f}  {medians[2]:10.2f}"
            f"  {peaks[0]:10.2f}  {peaks[1]:9.2f}"
        )


if __name__ == "__main__":
    main()
