"""A step whose batch is cut into microbatches, of which a device computes one after the other.

The microbatches lie along an axis of their own: the program is typed, and its collectives are
inserted, as if devices stood along it. What these would sum is summed over time instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.ir.leaf import Result
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.program import LocalProgram
from shardlang.ir.step import StepProgram

MICROBATCH = "microbatch"
"""The name of the axis."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A graph from named values to named values."""

    graph: fx.Graph
    takes: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccumulatedStep:
    """What every device runs for one step of several microbatches.

    For every microbatch `early` gives its parts of some totals, such as the number of tokens that
    count. With the totals `main` runs forward and backward for every microbatch; it gives parts of
    other totals, and parts of the gradients. `finish` makes the loss of the totals, `reduce` the
    gradients of the summed parts.

    Attributes:
        axis: the axis of the microbatches.
        early: leaves to parts of totals, by the names under which `main` takes the totals.
        main: takes the leaves and totals; its results are parts of totals, then new values of
            buffers; its gradients are parts, by the names under which `reduce` takes the sums.
        finish: leaves and totals to the loss.
        reduce: summed parts to gradients, by the names of the leaves.
        loss: the result that gradients start from.
        joins: totals that are no sums: their parts follow one another along a dim.
        wide: the type in which parts of gradients are summed that are narrower.
    """

    axis: Axis
    early: Piece
    main: StepProgram
    finish: Piece
    reduce: Piece
    loss: Result
    joins: Mapping[str, int] = field(default_factory=dict)
    wide: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class MeshAt(Mesh):
    """The devices of a mesh as they compute one microbatch: each has a place along its axis too."""

    fixed: tuple[tuple[str, int], ...] = field(default=())

    def coord(self, device: int) -> dict[str, int]:
        """The coordinate of a device number, the microbatch included."""
        return {**Mesh.coord(self, device), **dict(self.fixed)}


def mesh_at(mesh: Mesh, axis: Axis, microbatch: int) -> MeshAt:
    """The mesh without the axis of microbatches, at one of them."""
    rest = tuple(one for one in mesh.axes if one != axis)
    return MeshAt(rest, ((axis.name, microbatch),))


def mesh_of(program: LocalProgram) -> Mesh:
    """The devices of a program, at the first microbatch where it has an axis of them."""
    found = [axis for axis in program.mesh.axes if axis.name == MICROBATCH]
    return mesh_at(program.mesh, found[0], 0) if found else program.mesh
