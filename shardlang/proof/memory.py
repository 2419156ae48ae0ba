"""What a proof needs of this machine's memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import fx

from shardlang.capture import Captured
from shardlang.cost.held import local_bytes
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, layout_of
from shardlang.ir.program import LocalProgram

WIDE = torch.float64
"""The dtype of all values of a proof."""


def estimate_bytes(captured: Captured, program: LocalProgram, train: bool) -> int:
    """Upper estimate of the bytes that a proof holds at once.

    Parameters and inputs stand once in the reference and once on the devices together, gradients
    as well in train mode; so do all values of the graph, which autograd keeps.
    """
    leaves = WIDE.itemsize * sum(math.prod(leaf.shape) for leaf in captured.leaves)
    local = sum(_spread(leaf.at_rest, program) for leaf in program.leaves)
    calls = [node for node in captured.graph.nodes if node.op == "call_function"]
    values = WIDE.itemsize * sum(map(_numel, calls))
    spread = sum(
        _spread(layout_of(node), program)
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(info(node).layout, Layout)
    )
    kept = values + spread if train else (values + spread) // 8
    return (2 if train else 1) * (leaves + local) + leaves + kept


def _numel(node: fx.Node) -> int:
    val = info(node).value
    return val.numel() if isinstance(val, torch.Tensor) else 0


def _spread(layout: Layout, program: LocalProgram) -> int:
    return program.mesh.devices * local_bytes(layout, WIDE)


def available_bytes() -> int:
    """Memory that this machine has free."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def readable(size: int) -> str:
    """`3.2 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
