"""differentiate: the backward, written out behind the forward in one graph.

Every op through which a gradient flows gives the ops of its forward and those of its backward
(`vjp`); every reshard gives its two collectives, which come from the one table of changes. The
backward visits the ops in reverse, and adds the gradients of a value that several ops read in the
order in which they come. What is saved between the two is what a backward op reads of the forward.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.program import LocalProgram, nodes_of_results
from shardlang.ir.reduced import Reduced
from shardlang.ir.step import StepProgram
from shardlang.passes.step.backward import BackwardWriter
from shardlang.passes.step.fill_stages import fill_stages
from shardlang.passes.step.forward import ForwardWriter
from shardlang.passes.step.step_writer import StepWriter
from shardlang.passes.step.steps_back import Step, steps_back, value_of
from shardlang.passes.step.unread import drop_unread
from shardlang.vjp.by_itself import by_itself


def differentiate(
    program: LocalProgram,
    trained: Collection[str],
    given: Collection[str],
    ready_for: Collection[str],
) -> StepProgram:
    """The forward and backward of a program in one graph.

    Args:
        trained: the leaves whose gradients are returned, by name.
        given: the results whose cotangents are given, by name.
        ready_for: results for whose cotangents too the forward is written, as in a program that is
            given them; it is then the same text as in that program.
    """
    return _Differentiation(program, set(trained)).run(given, {*given, *ready_for})


class _Differentiation:
    def __init__(self, program: LocalProgram, trained: Collection[str]) -> None:
        self.program = program
        names = {leaf.node: leaf.name for leaf in program.leaves}
        self.trained = {
            names[n.name]: n
            for n in program.graph.find_nodes(op="placeholder")
            if names[n.name] in trained
        }
        self.writer = StepWriter()
        self.backward = BackwardWriter(self.writer, Reduced(program))

    def run(self, given: Collection[str], ready_for: Collection[str]) -> StepProgram:
        """Find out who is asked for what, write the forward, write the backward."""
        steps = self._steps(list(self._results(ready_for).values()))
        self._leaves()
        names = self._cotangents(self._results(given))
        nodes = [n for n in self.program.graph.nodes if n.op == "call_function"]
        fill_stages(self.program.graph)
        forward = ForwardWriter(self.writer, steps)
        for node in nodes:
            forward.write(node)
        self.writer.returning = True
        for node in reversed(nodes):
            if node in steps:
                self.backward.write(steps[node])
        return self._returned(names)

    def _steps(self, ends: list[fx.Node]) -> dict[fx.Node, Step]:
        trained = set(self.trained.values())
        return by_itself(lambda: steps_back(self.program, ends, trained))

    def _results(self, names: Collection[str]) -> dict[str, fx.Node]:
        """The nodes of those of the results that carry a gradient."""
        pairs = zip(self.program.results, nodes_of_results(self.program), strict=True)
        return {
            result.name: node
            for result, node in pairs
            if result.name in names
            and result.kind is ResultKind.OUTPUT
            and info(node).differentiable
        }

    def _leaves(self) -> None:
        """Write the leaves, as their values lie at rest."""
        leaves = {leaf.node: leaf for leaf in self.program.leaves}
        for node in self.program.graph.find_nodes(op="placeholder"):
            leaf = leaves[node.name]
            self.writer.leaf(node, leaf.gathered, leaf.dtype)

    def _cotangents(self, seeds: Mapping[str, fx.Node]) -> tuple[str, ...]:
        self.writer.returning = True
        for number, node in enumerate(seeds.values()):
            made = self.writer.graph.placeholder(f"cotangent_{number}")
            layout = info(node).layout
            assert isinstance(layout, Layout)
            record = NodeInfo(info(node).value, layout=layout.dual(), backward=True)
            set_info(made, record)
            self.backward.give(value_of(node), made)
        self.writer.returning = False
        return tuple(seeds)

    def _returned(self, names: tuple[str, ...]) -> StepProgram:
        results = [self.writer.now(n) for n in nodes_of_results(self.program)]
        dtypes = {leaf.name: leaf.dtype for leaf in self.program.leaves}
        found = {
            name: self.backward.returned(n, dtypes[name])
            for name, n in self.trained.items()
            if (n, 0) in self.backward.gradients
        }
        self.writer.graph.output((tuple(results), tuple(found.values())))
        drop_unread(self.writer.graph)
        return StepProgram(
            self.program.mesh, self.writer.graph, self.program.leaves, self.program.results, names,
            tuple(found), self._adjoints(), wide=self.program.step.precision.reduce,
        )  # fmt: skip

    def _adjoints(self) -> dict[str, str]:
        found = {
            node.name: self.backward.gradients.get(value_of(node))
            for node in self.program.graph.nodes
        }
        return {name: gradient.name for name, gradient in found.items() if gradient is not None}
