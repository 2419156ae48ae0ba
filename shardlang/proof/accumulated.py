"""The step of several microbatches beside the reference, which computes the batch as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shardlang.ir.leaf import LeafKind
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.passes.step.write_step import write_accumulated
from shardlang.proof.compare import difference, largest
from shardlang.proof.reference import Reference
from shardlang.runtime.simulate import PerDevice
from shardlang.runtime.simulate_accumulated import AccumulatedSimulator


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
        after: tuple[SimulatedAccumulation, Mapping[str, PerDevice]] | None = None,
    ) -> None:
        """Run it.

        Args:
            program: with an axis of microbatches.
            after: an earlier run, and the parameters that an update left.

        Raises:
            DeviceFault: an op fails on a device.
            ShardError: SH0409, an op needs all microbatches at once.
        """
        before, updated = after or (None, {})
        if before is None:
            step = write_accumulated(program, reference.trainable)
            self.simulator = AccumulatedSimulator(step)
        else:
            self.simulator = before.simulator
        self.program, self.reference = program, reference
        self.coords = list(self.simulator.meshes[0].coords())
        self.leaves = {
            x.name: updated[x.name] if x.name in updated else self._placed(x.name, 0)
            for x in program.leaves
            if x.kind is not LeafKind.INPUT
        }
        torch.manual_seed(reference.seed)
        made = self.simulator.run(
            [self._at(number) for number in range(len(self.simulator.meshes))],
            reference.setting.scale,
        )
        self.gradients, self.loss, self.written = made.gradients, made.loss, made.written

    def _at(self, number: int) -> dict[str, PerDevice]:
        """All leaves of one microbatch; the parameters are those of all."""
        leaves = self.program.leaves
        return {x.name: self.leaves.get(x.name) or self._placed(x.name, number) for x in leaves}

    def _placed(self, name: str, number: int) -> PerDevice:
        leaf = next(x for x in self.program.leaves if x.name == name)
        full: Tensor = self.reference.values[name]
        coords = self.simulator.meshes[number].coords()
        return [shard_of(full, leaf.at_rest, at).detach().clone() for at in coords]

    def again(self, reference: Reference, values: Mapping[str, PerDevice]) -> SimulatedAccumulation:
        """The step once more, on parameters that an update left."""
        return SimulatedAccumulation(self.program, reference, (self, values))

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
        for leaf in self.program.leaves:
            given = self.reference.gradients.get(leaf.name)
            mine = self.gradients.get(leaf.name)
            if given is not None and mine is not None:
                found[leaf.name] = difference(mine, given, leaf.layout, self.coords, top)
            elif mine is not None or (given is not None and bool(given.any())):
                found[leaf.name] = float("inf")
        return found
