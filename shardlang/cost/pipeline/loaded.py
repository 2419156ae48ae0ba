"""A stage as one device runs it for microbatches of one size: its parts, and what they hand on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from shardlang.ir.pipeline.staged import nodes_of
from shardlang.vjp.at_device import written_for

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The parts of a stage on one device.

    Attributes:
        parts: what each action of the stage runs.
        handed: what the forward, or the gradients of the inputs, leave to a later part, by node:
            the parts that read it.
    """

    stage: StageProgram
    calls: StepCalls
    coord: Coord
    parts: Mapping[Work, Half]
    handed: Mapping[fx.Node, tuple[Work, ...]]

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

    def ends(self, node: fx.Node, work: Work) -> bool:
        """Whether no later part reads a value."""
        return not (work is Work.INPUT and Work.WEIGHT in self.handed.get(node, ()))


def loaded(stage: StageProgram, mesh: MeshAt, coord: Coord) -> Loaded:
    """A stage on the device at a coordinate."""
    here = replace(stage, step=written_for(stage.step, coord, _CPU))
    calls = StepCalls(mesh, coord, "gloo")
    parts = {work: part_of(nodes_of(here, work), calls) for work in Work}
    return Loaded(here, calls, coord, parts, dict(_handed(here)))


def _handed(stage: StageProgram) -> Iterator[tuple[fx.Node, tuple[Work, ...]]]:
    """What later parts read, with these parts: values of the forward, and those of its inputs.

    Leaves are the caller's, so nobody hands them on; a value from another stage is handed on.
    """
    input_part = set(nodes_of(stage, Work.INPUT))
    for node in stage.step.graph.nodes:
        if node.op == "placeholder" and not info(node).backward and node.name not in stage.values:
            continue
        readers = {_part(user, input_part) for user in node.users} - {None}
        mine = _part(node, input_part)
        found = tuple(work for work in (Work.INPUT, Work.WEIGHT) if work in readers)
        if node.op == "call_function" and mine is not None:
            found = (Work.WEIGHT,) if mine is Work.INPUT and Work.WEIGHT in found else ()
        if found:
            yield node, found


def _part(node: fx.Node, input_part: Iterable[fx.Node]) -> Work | None:
    """The part of a backward to which a node belongs."""
    if node.op == "output" or not info(node).backward:
        return None
    return Work.INPUT if node in input_part else Work.WEIGHT
