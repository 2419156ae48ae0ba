"""The result of the passes: one program text for every device, and where its tensors lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import fx

from shardlang.ir.graph import GraphInfo, ShardGraph
from shardlang.ir.leaf import Leaf, Result, ResultKind
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import info
from shardlang.ir.reshard import apply_reshard, apply_reshards
from shardlang.ir.step_options import NO_OPTIONS, StepOptions
from shardlang.ir.text import Printer, Stage
from shardlang.ir.values import sources

__all__ = ["LocalProgram", "apply_reshard", "apply_reshards"]


@dataclass(slots=True)
class LocalProgram:
    """The program that every device runs.

    Nodes of `graph` are aten ops on local tensors whose arguments may depend on the device, calls
    of local functions, and reshard nodes (`apply_reshard`, `apply_reshards`). Every node has a
    `NodeInfo`.

    Attributes:
        step: the options of the passes on its step program.
    """

    mesh: Mesh
    graph: fx.Graph
    leaves: tuple[Leaf, ...]
    results: tuple[Result, ...]
    loss: str | None = None
    data_axes: frozenset[Axis] = frozenset()
    info: GraphInfo = field(default_factory=GraphInfo)
    step: StepOptions = NO_OPTIONS

    def text(self) -> str:
        """The program as text, the same on every device."""
        graph = ShardGraph(self.mesh, self.graph, list(self.leaves), [], self.data_axes, self.loss)
        there = [node for node in graph.result_nodes if node is not None]
        pairs = list(zip(self.results, there, strict=True))
        return "\n".join(Printer(graph, Stage.PROGRAM, pairs).lines())

    def fingerprint(self) -> str:
        """A hash of text and options, compared across ranks before the first collective."""
        return hashlib.sha256(f"{self.text()}\n{self.step}".encode()).hexdigest()


def nodes_of_results(program: LocalProgram) -> list[fx.Node]:
    """The node of every result, in order; what the graph returns beside tensors is left out."""
    output = next(iter(reversed(program.graph.nodes)))
    return [node for node in output.args[0] if node is not None]


def differentiable(program: LocalProgram) -> list[str]:
    """The results at which a gradient may start, by name."""
    pairs = zip(program.results, nodes_of_results(program), strict=True)
    return [r.name for r, n in pairs if r.kind is ResultKind.OUTPUT and info(n).differentiable]


def seeds_of(program: LocalProgram) -> list[fx.Node]:
    """The results whose gradient is given: the loss, or every output where there is none."""
    pairs = zip(program.results, nodes_of_results(program), strict=True)
    return [
        node
        for result, node in pairs
        if (result.name == program.loss if program.loss else result.kind is ResultKind.OUTPUT)
    ]


def with_gradient(program: LocalProgram) -> set[fx.Node]:
    """Every node through whose value a gradient flows in the backward.

    The gradient flows from the seeds against the edges, through values marked `diff`.
    """
    return sources(program.graph, seeds_of(program), lambda node: info(node).differentiable)
