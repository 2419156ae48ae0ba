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
        totals = totals_on(step, self.meshes, leaves)
        parts, sums, written = ByName(), ByName(), ByName()
        for mesh, own in zip(self.meshes, leaves, strict=True):
            torch.set_rng_state(state)
            simulator = StepSimulator(step.main, mesh=mesh)
            seed = torch.full(step.loss.layout.shape, scale, dtype=step.loss.dtype)
            seeds = {n: [seed.clone() for _ in simulator.coords] for n in step.main.cotangents}
            results, gradients = simulator.run({**own, **totals}, seeds)
            pairs = list(zip(step.main.results, results, strict=True))
            add_up_parts(parts, {r.name: x for r, x in pairs if r.kind is ResultKind.OUTPUT})
            written = {r.name: x for r, x in pairs if r.kind is ResultKind.MUTATION}
            add_up_parts(sums, gradients, step.wide)
        first = self.meshes[0]
        loss = run_piece(step.finish, first, {**leaves[0], **totals, **parts})
        return SimulatedStep(loss["loss"], run_piece(step.reduce, first, sums), written)


def totals_on(
    step: AccumulatedStep, meshes: Sequence[MeshAt], leaves: Sequence[Mapping[str, PerDevice]]
) -> ByName:
    """The totals that `main` takes, of the leaves of all microbatches."""
    early = [run_piece(step.early, mesh, own) for mesh, own in zip(meshes, leaves, strict=True)]
    made = [
        totals_of([{n: x[d] for n, x in one.items()} for one in early], step.joins)
        for d in range(meshes[0].devices)
    ]
    return {name: [one[name] for one in made] for name in step.early.gives}


def run_piece(piece: Piece, mesh: MeshAt, values: Mapping[str, PerDevice]) -> ByName:
    """What a piece gives, by name."""
    made = GraphSimulator(mesh, piece.graph).execute([values[name] for name in piece.takes])
    returned = piece.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    nodes = [node for node in returned if isinstance(node, fx.Node)]
    return {name: made[node] for name, node in zip(piece.gives, nodes, strict=True)}


def add_up_parts(
    into: ByName, values: Mapping[str, PerDevice], wide: torch.dtype | None = None
) -> None:
    """Add the parts that one microbatch has of some sums.

    Args:
        wide: the type of the sums of narrower values.
    """
    for name, value in values.items():
        known, given = into.get(name), [x.to(wider(x.dtype, wide)) for x in value]
        into[name] = given if known is None else [a + b for a, b in zip(known, given, strict=True)]
