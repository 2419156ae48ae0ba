"""The simulator of a pipeline: all stages in one process, action after action.

Every stage has its own values of every microbatch. What another stage makes is there only once it
was sent, so an order in which something comes too late is a fault, and so is a value that no action
sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from shardlang.ir.accumulated import MeshAt, mesh_at
from shardlang.ir.leaf import ResultKind
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import StagedStep, nodes_of
from shardlang.runtime.simulate import DeviceFault, PerDevice
from shardlang.runtime.simulate_accumulated import (
    ByName,
    SimulatedStep,
    add_up_parts,
    run_piece,
    totals_on,
)
from shardlang.runtime.simulate_step import GraphSimulator

Values = dict[str, PerDevice]


class StagedSimulator:
    """Runs a `StagedStep` on simulated devices, in the order of some actions."""

    def __init__(self, step: StagedStep) -> None:
        self.step, whole = step, step.whole
        count = whole.axis.size
        self.meshes = [mesh_at(whole.main.mesh, whole.axis, i) for i in range(count)]
        self._calls = {
            (stage.number, work): nodes_of(stage, work) for stage in step.stages for work in Work
        }
        self._values: dict[tuple[int, int], Values] = {}
        self._sums, self._parts, self._written = ByName(), ByName(), ByName()

    def run(
        self,
        leaves: Sequence[Mapping[str, PerDevice]],
        order: Sequence[Action],
        scale: float = 1.0,
    ) -> SimulatedStep:
        """Run the step; `leaves` are those of every microbatch, by name and device.

        Args:
            order: every action once, as the ranks do them.
        """
        whole, state = self.step.whole, torch.get_rng_state()
        totals = totals_on(whole, self.meshes, leaves)
        seed = torch.full(whole.loss.layout.shape, scale, dtype=whole.loss.dtype)
        for action in order:
            if action.work is Work.FORWARD:
                torch.set_rng_state(state)
            given = {**leaves[action.microbatch], **totals}
            self._act(action, given, seed)
        loss = run_piece(whole.finish, self.meshes[0], {**leaves[0], **totals, **self._parts})
        gradients = ByName()
        for piece in self.step.reduces:
            gradients.update(run_piece(piece, self.meshes[0], self._sums))
        # a copy that is not trained, or whose stage asks nothing of it, has no gradient
        for name, first in ((one, of) for one, of in self.step.tied.items() if one in gradients):
            add_up_parts(gradients, {first: gradients.pop(name)})
        return SimulatedStep(loss["loss"], gradients, self._written)

    def _act(self, action: Action, given: Mapping[str, PerDevice], seed: torch.Tensor) -> None:
        stage, mesh = self.step.stages[action.stage], self.meshes[action.microbatch]
        values = self._values.setdefault((action.stage, action.microbatch), {})
        if action.work is Work.FORWARD:
            self._take(stage, given, values)
        else:
            self._take_seeds(stage, mesh, seed, values)
        calls = self._calls[action.stage, action.work]
        _run(GraphSimulator(mesh, stage.step.graph), calls, values)
        if action.work is Work.FORWARD:
            self._give(stage, action.microbatch, values)
        else:
            self._give_back(stage, action, {node.name for node in calls}, values)

    def _take(self, stage: StageProgram, given: Mapping[str, PerDevice], into: Values) -> None:
        """The leaves of a stage; values from other stages were sent."""
        for leaf in stage.step.leaves:
            if leaf.name not in stage.values:
                into[leaf.node] = given[leaf.name]

    def _take_seeds(
        self, stage: StageProgram, mesh: MeshAt, seed: torch.Tensor, into: Values
    ) -> None:
        """The cotangents of the stage's own results."""
        nodes = stage.step.graph.find_nodes(op="placeholder")[len(stage.step.leaves) :]
        for name, node in zip(stage.step.cotangents, nodes, strict=True):
            if name not in stage.gradients:
                into[node.name] = [seed.clone() for _ in range(mesh.devices)]

    def _give(self, stage: StageProgram, microbatch: int, values: Values) -> None:
        """Send values, and add up the parts of totals."""
        nodes, _ = stage.step.returned
        for result, node in zip(stage.step.results, nodes, strict=True):
            for other in stage.gives.get(result.name, ()):
                self._send(values[node.name], other, microbatch, node)
            if result.kind is ResultKind.MUTATION:
                self._written[result.name] = values[node.name]
            elif result.name not in stage.gives:
                add_up_parts(self._parts, {result.name: values[node.name]})

    def _give_back(
        self, stage: StageProgram, action: Action, made: set[str], values: Values
    ) -> None:
        """Send gradients, and add up the parts of those of the stage's own leaves.

        One that no call makes, such as a cotangent handed through, is given by the first action.
        """
        _, nodes = stage.step.returned
        for name, node in zip(stage.step.gradients, nodes, strict=True):
            through = node.op == "placeholder" and action.work is not Work.WEIGHT
            if node.name not in made and not through:
                continue
            for other in stage.returns.get(name, ()):
                self._send(values[node.name], other, action.microbatch, node)
            if name not in stage.returns:
                add_up_parts(self._sums, {name: values[node.name]}, self.step.whole.wide)
        if action.work is not Work.INPUT:
            del self._values[action.stage, action.microbatch]

    def _send(self, values: PerDevice, stage: int, microbatch: int, node: fx.Node) -> None:
        self._values.setdefault((stage, microbatch), {})[node.name] = values


def _run(simulator: GraphSimulator, calls: Sequence[fx.Node], values: Values) -> None:
    """Run some calls of a graph on values by name.

    Raises:
        DeviceFault: a value is not there.
    """
    with torch.no_grad():
        for node in calls:
            missing = [x.name for x in node.all_input_nodes if x.name not in values]
            if missing:
                raise DeviceFault(node, None, f"it reads `{missing[0]}`, which was not sent")
            given = {x: values[x.name] for x in node.all_input_nodes}
            values[node.name] = simulator.call(node, given)
