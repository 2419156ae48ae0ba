"""Records that nodes and graphs carry: what a spec states, and what the passes find out."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardlang.ir.layout import Layout


@dataclass(frozen=True, slots=True)
class Stated:
    """A layout that the spec states for a leaf or a value.

    Attributes:
        layout: the stated layout; open dims are whole in it.
        open: dims that propagation decides.
        place: `file.shard:7` of the statement.
    """

    layout: Layout
    open: frozenset[int] = frozenset()
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class FullGather:
    """A change of layout during which devices hold more than before and after."""

    start: Layout
    widest: Layout
    end: Layout
