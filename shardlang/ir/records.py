"""Records that nodes and graphs carry: what a spec states, and what the passes find out."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis


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


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a chain of ops was weighed at over one axis.

    Attributes:
        names: the nodes of the ops that had several ways.
        flowed: bytes of a step between them as layouts had flowed, forward and backward.
        chosen: bytes as they are chosen.
    """

    axis: Axis
    names: frozenset[str]
    flowed: int
    chosen: int
