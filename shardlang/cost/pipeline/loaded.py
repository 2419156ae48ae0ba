"""A stage as one device runs it for microbatches of one size: what each of its actions runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from shardlang.cost.effects import TensorType
from shardlang.cost.half import Half, part_of
from shardlang.cost.step_calls import StepCalls
from shardlang.ir.accumulated import MeshAt
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info, layout_of, tensor_of
from shardlang.ir.pipeline.action import Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.runtime.stages.part import Lives, rows_of
from shardlang.vjp.at_device import written_for

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class PartLives:
    """What an action of a stage runs, and which values go when.

    Attributes:
        half: the statements.
        computed: the variables that it makes.
        takes, gives, drops, later, hands: as those of `runtime.stages.part.Part`.
    """

    half: Half
    computed: frozenset[fx.Node]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    drops: frozenset[str]
    later: frozenset[str]
    hands: frozenset[str]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The parts of a stage on one device.

    Attributes:
        nodes: those of the stage, by name.
        handed: what the forward leaves to the backward, by node.
    """

    stage: StageProgram
    calls: StepCalls
    coord: Coord
    parts: Mapping[Work, PartLives]
    nodes: Mapping[str, fx.Node]
    handed: frozenset[fx.Node]

    @property
    def leaves(self) -> Iterator[tuple[Leaf, fx.Node]]:
        """The leaves and values from other stages, with their placeholders."""
        placeholders = self.stage.step.graph.find_nodes(op="placeholder")
        return zip(self.stage.step.leaves, placeholders, strict=False)

    @property
    def cotangents(self) -> Iterator[tuple[str, fx.Node]]:
        """The gradients that the backward is given: of results, and from other stages."""
        placeholders = self.stage.step.graph.find_nodes(op="placeholder")
        given = placeholders[len(self.stage.step.leaves) :]
        return zip(self.stage.step.cotangents, given, strict=True)

    def type_of(self, leaf: fx.Node) -> TensorType:
        """How a leaf lies here."""
        return TensorType.dense(layout_of(leaf).local_shape(self.coord), tensor_of(leaf).dtype)

    def part_of(self, graph: fx.Graph) -> Half:
        """A whole graph as a part that is run by itself."""
        return part_of(graph.nodes, self.calls)


def loaded(stage: StageProgram, works: Collection[Work], mesh: MeshAt, coord: Coord) -> Loaded:
    """A stage on the device at a coordinate.

    Args:
        works: those that the schedule has of it.
    """
    here = replace(stage, step=written_for(stage.step, coord, _CPU))
    calls = StepCalls(mesh, coord, "gloo")
    parts: dict[Work, PartLives] = {}
    for row in rows_of(works):
        lives = Lives(here, row)
        for place, work in enumerate(row):
            parts.setdefault(work, _part(lives, place, calls))
    nodes = {node.name: node for node in here.step.graph.nodes}
    handed = frozenset(
        node
        for node in nodes.values()
        if not info(node).backward and any(info(user).backward for user in node.users)
    )
    return Loaded(here, calls, coord, parts, nodes, handed)


def _part(lives: Lives, place: int, calls: StepCalls) -> PartLives:
    half = part_of(lives.rows[place], calls)
    takes, done = lives.takes(place), lives.done(place)
    drops = done & set(takes) - lives.out
    return PartLives(
        half, frozenset(half.statements), takes, lives.gives(place), drops, done - drops,
        lives.hands(place),
    )  # fmt: skip
