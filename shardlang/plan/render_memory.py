"""The memory of a step as text: what lies on the fullest device at the peak, and at rest."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from shardlang.cost.composition import Kind
from shardlang.plan.moments import Memory, Moment
from shardlang.plan.text import bytes_text
from shardlang.plan.types import Recomputed


def print_memory(console: Console, memory: Memory) -> None:
    """Of each kind the bytes at the peak and those at rest, and below where the peak is."""
    peak, rest = memory.peak, at_rest(memory)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("at the peak", justify="right")
    table.add_column("at rest", justify="right")
    for kind in Kind:
        if peak.held[kind] or rest.get(kind):
            table.add_row(_name(kind, memory), *map(_cell, (peak.held[kind], rest.get(kind, 0))))
    table.add_row("all", *map(_cell, (peak.bytes, sum(rest.values()))))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print(Padding(f"the peak is in the {place_of(peak)}", (0, 0, 0, 2)), style="dim")


def recomputed_text(found: Recomputed) -> str:
    """What is computed again, in one line."""
    flops = f"{found.flops:,} flops" if found.flops else "no flops of products"
    saved = bytes_text(abs(found.saved_bytes))
    kept = f"{saved} {'less' if found.saved_bytes >= 0 else 'more'} kept for the backward"
    if found.microbatches > 1:
        kept += f" of each of {found.microbatches} microbatches"
    return f"{len(found.again)} ops are computed again: {flops}, {kept}"


def at_rest(memory: Memory) -> Mapping[Kind, int]:
    """What lies there between the backward and the update, beside inputs and outputs."""
    return {
        Kind.PARAMETERS: memory.params_bytes,
        Kind.BUFFERS: memory.buffers_bytes,
        Kind.OPTIMIZER: memory.optimizer_bytes,
        Kind.GRADIENTS: memory.gradients_bytes,
    }


def place_of(moment: Moment) -> str:
    """`backward of lm_head, at mm_2`."""
    module = f" of {moment.module}" if moment.module else ""
    return f"{moment.phase}{module}" + (f", at {moment.node}" if moment.node else "")


def _name(kind: Kind, memory: Memory) -> str:
    return f"state of {memory.optimizer_name}" if kind is Kind.OPTIMIZER else kind.value


def _cell(count: int) -> str:
    return bytes_text(count) if count else "-"
