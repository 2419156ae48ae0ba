"""Parameters that several stages read: one stage holds them, and sends them to the others.

The value goes out at the begin of a step, when every rank has taken the last update; the gradients
of the others come back at its end, and are added to that of the stage that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.mesh import Coord
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.errors import RunError
from shardlang.runtime.stages.links import Sends
from shardlang.runtime.stages.routes import Way
from shardlang.runtime.transport import Arriving
from shardlang.runtime.watch import named


@dataclass(frozen=True, slots=True)
class _Copy:
    """A parameter in a later stage.

    Attributes:
        leaf: of the later stage.
        first: that of the stage that holds it.
        out: the way of its value; None where one rank has both stages.
        trained: whether they get gradients.
    """

    leaf: Leaf
    first: Leaf
    out: Way | None
    trained: bool

    @property
    def back(self) -> Way | None:
        """The way of its gradient."""
        return None if self.out is None or not self.trained else (self.out[1], self.out[0])


class Tied:
    """The tied parameters of a pipeline, as one of its ranks sees them."""

    def __init__(self, step: StagedStep, rank_of: Sequence[int], rank: int) -> None:
        self._rank, self._copies = rank, list[_Copy]()
        stage_of = {
            leaf.name: stage.number
            for stage in step.stages
            for leaf in stage.step.leaves
            if leaf.kind is LeafKind.PARAM
        }
        trained = {name for piece in step.reduces for name in piece.gives}
        leaves = {leaf.name: leaf for stage in step.stages for leaf in stage.step.leaves}
        for name, first in step.tied.items():
            way = rank_of[stage_of[first]], rank_of[stage_of[name]]
            copy = _Copy(
                leaves[name], leaves[first], way if way[0] != way[1] else None, name in trained
            )
            _check_alike(copy)
            self._copies.append(copy)

    @property
    def ways(self) -> set[Way]:
        """Over which ways tied values and their gradients are sent, by any rank."""
        return {way for copy in self._copies for way in (copy.out, copy.back) if way is not None}

    def told(self, coord: Coord) -> dict[Way, list[str]]:
        """What goes from and to this rank over each way, in order and in words."""
        found: dict[Way, list[str]] = {}
        for back in (False, True):
            for copy in self._copies:
                way, leaf = (copy.back, copy.first) if back else (copy.out, copy.leaf)
                if way is not None and self._rank in way:
                    layout = leaf.layout if back else leaf.at_rest
                    shape, what = list(layout.local_shape(coord)), "gradient" if back else "value"
                    line = f"{what} of the tied {copy.first.name}: {leaf.dtype}{shape}"
                    found.setdefault(way, []).append(line)
        return found

    def values(self, links: Sends, own: Mapping[str, Tensor], coord: Coord) -> dict[str, Tensor]:
        """The values of the copies in this rank's stages; sends those of its own."""
        found, sending = dict[str, Tensor](), list[Arriving]()
        for copy in self._copies:
            if copy.out is None:
                if copy.first.name in own:
                    found[copy.leaf.name] = own[copy.first.name]
            elif copy.out[0] == self._rank:
                sending.append(links.send(copy.out, own[copy.first.name]))
            elif copy.out[1] == self._rank:
                found[copy.leaf.name] = self._receive(links, copy.out, copy.leaf, coord)
        _wait_all(sending)
        return found

    def add_gradients(self, links: Sends, gradients: dict[str, Tensor], coord: Coord) -> None:
        """Add the gradients of the copies to those of what they are copies of."""
        sending = list[Arriving]()
        for copy in self._copies:
            given = gradients.pop(copy.leaf.name, None)
            if copy.out is None and given is not None:
                _add(gradients, copy.first.name, given)
            elif copy.back is not None and given is not None:
                sending.append(links.send(copy.back, given))
            elif copy.back is not None and copy.back[1] == self._rank:
                known = gradients.get(copy.first.name)  # none if only its copies are trained by
                dtype = copy.first.dtype if known is None else known.dtype
                came = self._receive(links, copy.back, copy.first, coord, dtype)
                _add(gradients, copy.first.name, came)
        _wait_all(sending)

    def _receive(
        self, links: Sends, way: Way, leaf: Leaf, coord: Coord, dtype: torch.dtype | None = None
    ) -> Tensor:
        layout = leaf.layout if dtype is not None else leaf.at_rest
        like = torch.empty(layout.local_shape(coord), dtype=dtype or leaf.dtype, device="meta")
        what = "gradient" if dtype is not None else "value"
        label = f"receive of the {what} of the tied {leaf.tied or leaf.name}"
        return named(label, links.receive(way, like).wait)


def _wait_all(sending: Sequence[Arriving]) -> None:
    for one in sending:
        named("send of tied parameters", one.wait)


def _add(gradients: dict[str, Tensor], name: str, given: Tensor) -> None:
    known = gradients.get(name)
    gradients[name] = given if known is None else known + given


def _check_alike(copy: _Copy) -> None:
    """Raise SH0645 if a copy lies otherwise than what it is a copy of."""
    if copy.leaf.at_rest != copy.first.at_rest or copy.leaf.layout != copy.first.layout:
        raise RunError(
            "SH0645",
            f"`{copy.first.name}` is used in two stages, as {copy.first.at_rest} in one and as"
            f" {copy.leaf.at_rest} in another",
            help="state its layout with `param`, so that it lies alike in both",
        )
