"""The step of several microbatches beside the reference, which computes the batch as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.capture import Captured
from shardlang.compiler.build import Statements
from shardlang.cost.timeline import alike, timeline
from shardlang.ir.accumulated import AccumulatedStep, MeshAt, mesh_at
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.passes.step.split_stages import staged
from shardlang.passes.step.write_step import write_accumulated
from shardlang.proof.compare import difference, largest
from shardlang.proof.reference import Reference
from shardlang.proof.report import Pipeline
from shardlang.runtime.simulate import PerDevice
from shardlang.runtime.simulate_accumulated import AccumulatedSimulator, SimulatedStep
from shardlang.runtime.simulate_stages import StagedSimulator

Run = Callable[[Sequence[Mapping[str, PerDevice]], float], SimulatedStep]


@dataclass(frozen=True, slots=True)
class Along:
    """How the step of several microbatches is computed.

    Attributes:
        statements: what is stated of the model along an axis of microbatches, its stages included.
        schedule: what the ranks of a pipeline do; None where every device computes all.
        name: that of the schedule.
    """

    captured: Captured
    statements: Statements
    schedule: PipelineSchedule | None = None
    name: str = ""

    @property
    def pipeline(self) -> Pipeline | None:
        """What a report says of the pipeline, if it is one."""
        made = self.schedule
        return None if made is None else Pipeline(self.name, made.stages, len(made.ranks))


class SimulatedAccumulation:
    """A step of several microbatches on simulated devices.

    Attributes:
        leaves: the parameters and buffers on every device, by name.
        gradients: by the names of the parameters.
        loss: on every device.
    """

    def __init__(
        self,
        program: LocalProgram,
        reference: Reference,
        schedule: PipelineSchedule | None = None,
        after: tuple[SimulatedAccumulation, Mapping[str, PerDevice]] | None = None,
    ) -> None:
        """Run it.

        Args:
            program: with an axis of microbatches.
            schedule: that of the stages of the program, if it has any.
            after: an earlier run, and the parameters that an update left.

        Raises:
            DeviceFault: an op fails on a device.
            ShardError: SH0409, an op needs all microbatches at once.
        """
        before, updated = after or (None, {})
        self.program, self.reference = program, reference
        if before is None:
            step = write_accumulated(program, self._trained())
            self.meshes, self._run = meshes_of(step), simulator_of(step, schedule)
        else:
            self.meshes, self._run = before.meshes, before._run
        self.coords = list(self.meshes[0].coords())
        self.leaves = {
            x.name: self._held(x, updated) for x in program.leaves if x.kind is not LeafKind.INPUT
        }
        torch.manual_seed(reference.seed)
        leaves = [self._at(number) for number in range(len(self.meshes))]
        made = self._run(leaves, reference.setting.scale)
        self.gradients, self.loss, self.written = made.gradients, made.loss, made.written

    def _trained(self) -> list[str]:
        """The leaves whose gradients are compared, and their copies in later stages."""
        wanted = set(self.reference.trainable)
        return [leaf.name for leaf in self.program.leaves if _source(leaf) in wanted]

    def _held(self, leaf: Leaf, updated: Mapping[str, PerDevice]) -> PerDevice:
        """What the devices have of a parameter or buffer; a copy has what an update left too."""
        name = _source(leaf)
        return updated[name] if name in updated else self._placed(leaf, 0)

    def _at(self, number: int) -> dict[str, PerDevice]:
        """All leaves of one microbatch; the parameters are those of all."""
        leaves = self.program.leaves
        return {x.name: self.leaves.get(x.name) or self._placed(x, number) for x in leaves}

    def _placed(self, leaf: Leaf, number: int) -> PerDevice:
        full: Tensor = self.reference.values[_source(leaf)]
        coords = self.meshes[number].coords()
        return [shard_of(full, leaf.at_rest, at).detach().clone() for at in coords]

    def again(self, reference: Reference, values: Mapping[str, PerDevice]) -> SimulatedAccumulation:
        """The step once more, on parameters that an update left."""
        return type(self)(self.program, reference, after=(self, values))

    def differences(self) -> dict[str, float]:
        """The loss, the buffers that it writes and every gradient beside the reference."""
        name = self.program.loss
        assert name is not None
        result = next(r for r in self.program.results if r.name == name)
        want = self.reference.results[name]
        scale = largest(self.reference.results)
        found = {name: difference(self.loss, want, result.layout, self.coords, scale)}
        layouts = {leaf.name: leaf.at_rest for leaf in self.program.leaves}
        for buffer, value in self.written.items():
            want = self.reference.results[buffer]
            found[buffer] = difference(value, want, layouts[buffer], self.coords, scale)
        top = largest(self.reference.gradients)
        for leaf in (leaf for leaf in self.program.leaves if leaf.tied is None):
            given = self.reference.gradients.get(leaf.name)
            mine = self.gradients.get(leaf.name)
            if given is not None and mine is not None:
                found[leaf.name] = difference(mine, given, leaf.layout, self.coords, top)
            elif mine is not None or (given is not None and bool(given.any())):
                found[leaf.name] = float("inf")
        return found


def meshes_of(step: AccumulatedStep) -> list[MeshAt]:
    """The devices as they compute each microbatch."""
    return [mesh_at(step.main.mesh, step.axis, number) for number in range(step.axis.size)]


def simulator_of(step: AccumulatedStep, schedule: PipelineSchedule | None) -> Run:
    """What runs a step: one microbatch after the other, or the actions of a schedule in order."""
    if schedule is None:
        return AccumulatedSimulator(step).run
    several, order = staged(step, schedule.stages), timeline(schedule, alike).order
    return lambda leaves, scale: StagedSimulator(several).run(leaves, order, scale)


def _source(leaf: Leaf) -> str:
    """The parameter that has a leaf's value."""
    return leaf.tied or leaf.name
