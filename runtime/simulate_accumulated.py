"""The simulator of a step of several microbatches: all devices, one microbatch after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from shardlang.ir.accumulated import AccumulatedStep, MeshAt, Piece, mesh_at
from shardlang.ir.leaf import ResultKind
from shardlang.ir.precision import wider
from shardlang.runtime.accumulate import totals_of
from shardlang.runtime.simulate import PerDevice
from shardlang.runtime.simulate_step import GraphSimulator, StepSimulator

ByName = dict[str, PerDevice]


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """What a step gave on every device: the loss, and gradients by the names of the leaves."""

    loss: PerDevice
    gradients: ByName
    written: ByName


class AccumulatedSimulator:
    """Runs an `AccumulatedStep` on simulated devices."""

    def __init__(self, step: AccumulatedStep) -> None:
        self.step = step
        self.meshes = [mesh_at(step.main.mesh, step.axis, i) for i in range(step.axis.size)]

    def run(self, leaves: Sequence[Mapping[str, PerDevice]], scale: float = 1.0) -> SimulatedStep:
        """Run the step; `leaves` are those of every microbatch, by name and device.

        Args:
            scale: by what the gradients are multiplied.
        """
        step, state = self.step, torch.get_rng_state()
        early = [_run(step.early, mesh, own) for mesh, own in zip(self.meshes, leaves, strict=True)]
        devices = range(self.meshes[0].devices)
        made = [
            totals_of([{n: x[d] for n, x in one.items()} for one in early], step.joins)
            for d in devices
        ]
        totals = {name: [one[name] for one in made] for name in step.early.gives}
        parts, sums, written = ByName(), ByName(), ByName()
        for mesh, own in zip(self.meshes, leaves, strict=True):
            torch.set_rng_state(state)
            simulator = StepSimulator(step.main, mesh=mesh)
            seed = torch.full(step.loss.layout.shape, scale, dtype=step.loss.dtype)
            seeds = {n: [seed.clone() for _ in simulator.coords] for n in step.main.cotangents}
            results, gradients = simulator.run({**own, **totals}, seeds)
            pairs = list(zip(step.main.results, results, strict=True))
            _add(parts, {r.name: x for r, x in pairs if r.kind is ResultKind.OUTPUT})
            written = {r.name: x for r, x in pairs if r.kind is ResultKind.MUTATION}
            _add(sums, {name: _widened(x, step.wide) for name, x in gradients.items()})
        first = self.meshes[0]
        loss = _run(step.finish, first, {**leaves[0], **totals, **parts})
        return SimulatedStep(loss["loss"], _run(step.reduce, first, sums), written)


def _run(piece: Piece, mesh: MeshAt, values: Mapping[str, PerDevice]) -> ByName:
    made = GraphSimulator(mesh, piece.graph).execute([values[name] for name in piece.takes])
    returned = piece.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    nodes = [node for node in returned if isinstance(node, fx.Node)]
    return {name: made[node] for name, node in zip(piece.gives, nodes, strict=True)}


def _widened(values: PerDevice, wide: torch.dtype | None) -> PerDevice:
    return [x.to(wider(x.dtype, wide)) for x in values]


def _add(into: ByName, values: Mapping[str, PerDevice]) -> None:
    for name, value in values.items():
        known = into.get(name)
        into[name] = (
            list(value) if known is None else [a + b for a, b in zip(known, value, strict=True)]
        )
