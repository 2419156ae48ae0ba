"""The backward of a step: from the cotangents of the results to the gradients of the leaves."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.device_values import size_at
from shardlang.ir.graph import is_item, is_reshard, reshards_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, results_of
from shardlang.ir.step import apply_collective, apply_collectives, pull
from shardlang.passes.step.local_calls import operands_of
from shardlang.passes.step.step_writer import StepWriter
from shardlang.passes.step.steps_back import Step, Value, is_bundle, places_of, value_of
from shardlang.passes.step.traced import Traced


class BackwardWriter:
    """Writes the backward of nodes that a gradient reaches, from the last to the first.

    Attributes:
        gradients: the whole gradient of every value that one has reached, so far.
    """

    def __init__(self, writer: StepWriter) -> None:
        self.writer = writer
        self.gradients: dict[Value, fx.Node] = {}

    def give(self, value: Value, gradient: fx.Node) -> None:
        """Add to the gradient of a value."""
        known = self.gradients.get(value)
        if known is not None:
            gradient = self.writer.add(torch.ops.aten.add.Tensor, (known, gradient))
        self.gradients[value] = gradient

    def write(self, step: Step) -> None:
        """Write the backward of a node that a gradient reaches."""
        given = [self.gradients.get((step.node, i)) for i in step.wants.given]
        if not any(given):
            return
        self.writer.at = step.node
        if is_reshard(step.node):
            self._back_over(step)
        elif step.traced is None:
            self._pulled(step, given)
        else:
            self._traced_back(step, step.traced, given)

    def _traced_back(self, step: Step, traced: Traced, given: Sequence[fx.Node | None]) -> None:
        env = step.saved
        for i, placeholder, cotangent in zip(
            step.wants.given, traced.cotangents, given, strict=True
        ):
            env[placeholder] = cotangent or self._zeros(step.node, i)
        for one in traced.backward:
            env[one] = self.writer.emit(one, env)
        for i, operand in enumerate(operands_of(step.node)):
            gradient = traced.gradients.get(i)
            if gradient is not None:
                self.give(value_of(operand), env[gradient])

    def _zeros(self, node: fx.Node, index: int) -> fx.Node:
        """The cotangent of a result that no gradient reaches."""
        item = next(
            (u for u in node.users if is_item(u) and u.args[1] == places_of(node)[index]), node
        )
        layout = info(item).layout
        assert isinstance(layout, Layout), f"{item} has no layout"
        sizes = [size_at(dim) for dim in layout.dims]
        dtype = results_of(info(node).value)[index].dtype
        named = {"dtype": dtype, "device": torch.device("cpu")}
        return self.writer.add(torch.ops.aten.zeros.default, (sizes,), named)

    def _pulled(self, step: Step, given: Sequence[fx.Node | None]) -> None:
        made = self.writer.add(pull, (step.kept, tuple(given)), name=f"{step.node.name}_pulled")
        operands = operands_of(step.node)
        for place, i in enumerate(step.wants.wanted):
            self.give(value_of(operands[i]), self.writer.add(operator.getitem, (made, place)))

    def _back_over(self, step: Step) -> None:
        pairs = reshards_of(step.node)
        there = [i for i in step.wants.wanted if (step.node, i) in self.gradients]
        xs = tuple(self.gradients[step.node, i] for i in there)
        ways = tuple(pairs[i][1].adjoint for i in there)
        if not is_bundle(step.node):
            groups = [self.writer.now(by) for by in step.node.args[2:] if isinstance(by, fx.Node)]
            made = self.writer.add(apply_collective, (xs[0], ways[0], *groups), changes=step.node)
            self.give(value_of(pairs[0][0]), made)
            return
        made = self.writer.add(apply_collectives, (xs, ways), changes=step.node)
        for place, i in enumerate(there):
            self.give(value_of(pairs[i][0]), self.writer.add(operator.getitem, (made, place)))
