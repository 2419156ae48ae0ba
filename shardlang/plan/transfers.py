"""What goes between the stages of a pipeline, one row for each value and pair of stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shardlang.compiler.pipelined import Pipelined
from shardlang.cost.effects import TensorType
from shardlang.cost.held import local_bytes
from shardlang.ir.node import info
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.plan.moments import Phase
from shardlang.plan.names import Names
from shardlang.plan.stage_types import Sent, TransferRow


def transfers_of(
    made: Pipelined, names: Names, types: Mapping[str, TensorType]
) -> tuple[TransferRow, ...]:
    """All transfers of a step, those of each microbatch first.

    Stages of one rank hand values on without sending them.

    Args:
        types: how what is sent lies, by name.
    """
    rows = [*_Values(made, names, types).rows(), *_tied(made)]
    rank_of = made.schedule.rank_of()
    return tuple(row for row in rows if rank_of[row.source] != rank_of[row.target])


class _Values:
    """The transfers of values and gradients."""

    def __init__(self, made: Pipelined, names: Names, types: Mapping[str, TensorType]) -> None:
        self.stages, self.count = made.step.stages, made.step.whole.axis.size
        self.names, self.types = names, types
        self.nodes = {node.name: node for node in made.along.program.graph.nodes}

    def rows(self) -> Iterator[TransferRow]:
        """Values in the order of the stages, then gradients in reverse."""
        for stage in self.stages:
            for name, targets in stage.gives.items():
                for target in targets:
                    yield self._row(Sent.VALUE, name, self._name(name), stage.number, target)
        for stage in reversed(self.stages):
            for name, targets in stage.returns.items():
                for target in targets:
                    said = self._of_gradient(name, stage, target)
                    yield self._row(Sent.GRADIENT, name, said, stage.number, target)

    def _row(self, what: Sent, name: str, said: str, source: int, target: int) -> TransferRow:
        phase = Phase.FORWARD if what is Sent.VALUE else Phase.BACKWARD
        size, module = self.types[name].bytes, self._module(name, source)
        return TransferRow(what, said, source, target, phase, self.count, size, module)

    def _module(self, name: str, stage: int) -> str:
        """The module that makes a value or a gradient; empty if the stage hands it through."""
        nodes = self.stages[stage].step.graph.nodes
        return next((info(node).module for node in nodes if node.name == name), "")

    def _name(self, name: str) -> str:
        return self.names(self.nodes[name]) if name in self.nodes else name

    def _of_gradient(self, name: str, stage: StageProgram, target: int) -> str:
        """The value whose gradient it is: the only one of its shape that came from there.

        A gradient that sums up several is named after the module that makes it.
        """
        came = [
            value
            for value, source in stage.values.items()
            if source == target and self.types[value].shape == self.types[name].shape
        ]
        if len(came) == 1:
            return self._name(came[0])
        module = self._module(name, stage.number)
        return f"{name} in {module}" if module else name


def _tied(made: Pipelined) -> Iterator[TransferRow]:
    """The values of tied parameters, and their gradients on the way back."""
    held = {
        leaf.name: (stage.number, leaf) for stage in made.step.stages for leaf in stage.step.leaves
    }
    pairs = [(held[name], held[first]) for name, first in made.step.tied.items() if name in held]
    for (stage, copy), (source, leaf) in pairs:
        size = local_bytes(copy.at_rest, copy.dtype)
        yield TransferRow(
            Sent.PARAMETER, leaf.name, source, stage, Phase.FORWARD, 1, size, _owner(leaf.name)
        )
    for (stage, copy), (source, leaf) in pairs:
        if copy.trainable:
            size = local_bytes(copy.layout, copy.dtype)
            what = Sent.PARAMETER_GRADIENT
            owner = _owner(leaf.name)
            yield TransferRow(what, leaf.name, stage, source, Phase.BACKWARD, 1, size, owner)


def _owner(name: str) -> str:
    """The module that holds a parameter."""
    return name.rpartition(".")[0]
