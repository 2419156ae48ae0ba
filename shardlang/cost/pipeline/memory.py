"""The memory of every rank of a pipeline on its fullest device, in the order of a schedule."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shardlang.cost.devices import traits_of
from shardlang.cost.effects import TensorType
from shardlang.cost.pipeline.alone import NobodyElse, in_turn, one_stage
from shardlang.cost.pipeline.ends import Ends
from shardlang.cost.pipeline.loaded import Loaded, loaded
from shardlang.cost.pipeline.rank_memory import RankMemory
from shardlang.cost.pipeline.sent import sent_types
from shardlang.cost.update import UpdateCost
from shardlang.ir.accumulated import AccumulatedStep, mesh_at
from shardlang.ir.mesh import Axis, Coord
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.stages.routes import routes_of


@dataclass(frozen=True, slots=True)
class OnDevice:
    """What a rank does to the memory of one device.

    Attributes:
        coord: of the device, at its first microbatch.
    """

    coord: Coord
    memory: RankMemory


def rank_memories(
    step: StagedStep,
    schedule: PipelineSchedule,
    order: Sequence[Action],
    axis: Axis,
    updates: Sequence[UpdateCost],
) -> list[OnDevice]:
    """Of every rank, the device that needs the most bytes; the first of several such.

    Args:
        order: all actions, in an order in which they can be done one after the other.
        axis: of the pipeline.
        updates: what follows on each rank.
    """
    with ThreadPoolExecutor(1) as thread:
        devices = _Devices(step, schedule, order, axis)
        return thread.submit(
            lambda: [devices.fullest(rank, update) for rank, update in enumerate(updates)]
        ).result()


def accumulated_memory(step: AccumulatedStep, update: UpdateCost) -> OnDevice:
    """A step of several microbatches without a pipeline, on the device that needs the most."""
    with ThreadPoolExecutor(1) as thread:
        devices = _accumulated(step)
        return thread.submit(devices.fullest, 0, update).result()


def accumulated_device_memory(step: AccumulatedStep, device: int) -> RankMemory:
    """What such a step does to the memory of a device, by the device's number."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_accumulated(step).memory, 0, device).result()


def _accumulated(step: AccumulatedStep) -> _Devices:
    schedule = in_turn(step.axis.size)
    return _Devices(one_stage(step), schedule, schedule.ranks[0], None)


def device_memory(
    step: StagedStep,
    schedule: PipelineSchedule,
    order: Sequence[Action],
    axis: Axis,
    device: int,
) -> RankMemory:
    """What the actions of a device do to its memory, by the device's number."""
    devices = _Devices(step, schedule, order, axis)
    rank = mesh_at(step.whole.main.mesh, step.whole.axis, 0).coord(device)[axis.name]
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(devices.memory, rank, device).result()


class _Devices:
    """The devices of a pipeline, those alike taken together."""

    def __init__(
        self,
        step: StagedStep,
        schedule: PipelineSchedule,
        order: Sequence[Action],
        axis: Axis | None,
    ) -> None:
        self.step, self.schedule, self._order, self.axis = step, schedule, order, axis
        whole = step.whole
        self._meshes = [mesh_at(whole.main.mesh, whole.axis, i) for i in range(whole.axis.size)]
        self._traits = traits_of(whole.main)
        self._types: dict[object, Mapping[str, TensorType]] = {}

    def fullest(self, rank: int, update: UpdateCost) -> OnDevice:
        """The device of a rank that needs the most."""
        found = [
            OnDevice(self._meshes[0].coord(device), self.memory(rank, device))
            for device in self._unlike(rank)
        ]
        return max(found, key=lambda one: update.peak(one.memory, one.coord))

    def _unlike(self, rank: int) -> Sequence[int]:
        """The first device of each kind among those of a rank."""
        found: dict[object, int] = {}
        for device in range(self._meshes[0].devices):
            axis = self.axis
            if axis is None or self._meshes[0].coord(device)[axis.name] == rank:
                found.setdefault(tuple(self._keys(device)), device)
        return list(found.values())

    def _keys(self, device: int) -> Iterator[object]:
        """For each microbatch what the device's memory depends on."""
        yield from (self._kind(mesh.coord(device)) for mesh in self._meshes)

    def _kind(self, coord: Coord) -> object:
        """On what the memory of a device depends that is at a coordinate."""
        return tuple(trait(coord) for trait in self._traits)

    def _sent_types(self, coord: Coord) -> Mapping[str, TensorType]:
        """How what stages give lies on a device, the same on all that are alike."""
        kind = self._kind(coord)
        if kind not in self._types:
            self._types[kind] = sent_types(self.step, coord)
        return self._types[kind]

    def _ends(self, coord: Coord) -> Ends:
        if self.axis is None:
            return NobodyElse(self.step)
        return Ends(self.step, self.schedule, self.axis, self._meshes[0], coord)

    def memory(self, rank: int, device: int) -> RankMemory:
        """What the actions of a rank do on a device."""
        mesh, first = self._meshes[0], dict[object, int]()
        alike = [first.setdefault(key, i) for i, key in enumerate(self._keys(device))]

        @functools.cache
        def one(stage: int, number: int) -> Loaded:
            mesh = self._meshes[number]
            return loaded(self.step.stages[stage], mesh, mesh.coord(device))

        made = RankMemory(
            self.step,
            self.schedule.ranks[rank],
            lambda stage, number: one(stage, alike[number]),
            lambda name, number: self._sent_types(self._meshes[number].coord(device))[name],
            routes_of(self.step, self.schedule, self._order, rank),
            self._ends(mesh.coord(device)),
        )
        made.run()
        return made
