"""What the ranks of a pipeline tell one another behind their last action, on one device.

The calls are those of a run (`runtime/stages`), on a device that sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from shardlang.cost.effects import Call
from shardlang.cost.step_calls import Site, unconnected
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.groups import Group
from shardlang.runtime.stages.routes import Way
from shardlang.runtime.stages.shared import Lies, Round, Shared
from shardlang.runtime.stages.tied import Tied
from shardlang.runtime.transport import Arriving, Link


class Ends:
    """The calls behind the last action of a rank.

    Attributes:
        round: what is sent round.
    """

    def __init__(
        self,
        step: StagedStep,
        schedule: PipelineSchedule,
        axis: Axis,
        mesh: Mesh,
        coord: Coord,
    ) -> None:
        self.round, self._coord = Round.of(step), coord
        self._shared = Shared(axis, Site(mesh, coord, "gloo"))
        self._tied = Tied(step, schedule.rank_of(), coord[axis.name])

    def share(self, lies: Lies, mine: Sequence[str]) -> Call:
        """Gives all values that are sent round, in order; takes those of this rank.

        Args:
            mine: the names of what this rank has of them.
        """
        return Call(partial(self._share, lies, mine), object())

    def _share(self, lies: Lies, mine: Sequence[str], *xs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(mine, xs, strict=True))
        return tuple(self._shared(lies, given, self._coord).values())

    def add_tied(self, names: Sequence[str], after: list[str]) -> Call:
        """Gives the gradients when those of tied copies are added; takes them as they are before.

        Args:
            names: of what it takes.
            after: gets the names of what it gives.
        """
        return Call(partial(self._add_tied, names, after), object())

    def _add_tied(self, names: Sequence[str], after: list[str], *xs: Tensor) -> tuple[Tensor, ...]:
        gradients = dict(zip(names, xs, strict=True))
        self._tied.add_gradients(_Silent(), gradients, self._coord)
        after[:] = gradients
        return tuple(gradients.values())


class _Silent:
    """Links over which nothing goes."""

    def __init__(self) -> None:
        self._link = Link(Group((), ({}, {}), 0, connection=unconnected()))

    def send(self, way: Way, x: Tensor) -> Arriving:
        """Nobody gets it."""
        return self._link.send(x)

    def receive(self, way: Way, like: Tensor) -> Arriving:
        """Nothing comes into the memory that is there for it."""
        return self._link.receive(like.shape, like.dtype, torch.device("cpu"))
