"""The backward of a step: from the cotangents of the results to the gradients of the leaves."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.collective import Collective
from shardlang.ir.device_values import size_at
from shardlang.ir.graph import is_item, is_reshard, reshards_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, results_of, tensor_of
from shardlang.ir.reduced import Reduced
from shardlang.ir.step import apply_collective, apply_collectives, cast, pull
from shardlang.passes.step.filled import Fillings, Sum, plain_sum
from shardlang.passes.step.local_calls import operands_of
from shardlang.passes.step.step_writer import StepWriter
from shardlang.passes.step.steps_back import Step, Value, is_bundle, places_of, value_of
from shardlang.vjp.traced import Traced

LAST = sys.maxsize
"""For what is given to the backward from outside: it is there before all stages."""


class BackwardWriter:
    """Writes the backward of nodes that a gradient reaches, from the last to the first.

    Attributes:
        gradients: the gradient of every value that one has reached: the whole of it, once the
            backward of what makes the value is written.
    """

    def __init__(self, writer: StepWriter, reduced: Reduced) -> None:
        self.writer, self._reduced = writer, reduced
        self._wide: dict[fx.Node, torch.dtype] = {}
        self._fillings = Fillings()
        self._parts: dict[Value, dict[int, tuple[fx.Node, fx.Node | None]]] = {}
        self.gradients: dict[Value, fx.Node] = {}

    def give(self, value: Value, gradient: fx.Node) -> None:
        """Add to the gradient of a value, to what other readers in the same stage gave."""
        parts = self._parts.setdefault(value, {})
        stage = LAST if self.writer.stage is None else self.writer.stage
        if stage in parts:
            gradient = self._sum(parts[stage][0], gradient, self._fillings.add)
        parts[stage] = (gradient, self.writer.at)
        self.gradients[value] = gradient

    def _sum(self, known: fx.Node, gradient: fx.Node, add: Sum = plain_sum) -> fx.Node:
        kinds = [self._wide[x] for x in (known, gradient) if x in self._wide]
        made = add(known, gradient, self.writer.add)
        self._wide.update((made, kind) for kind in kinds[:1])
        return made

    def _join(self, value: Value) -> None:
        """Add what the readers of several stages gave, from the last stage to the first.

        Each adds its own to what comes from the later ones, so one gradient is sent from each.
        """
        parts = self._parts.get(value, {})
        if len(parts) < 2:
            return
        at, (stage, *others) = self.writer.at, sorted(parts, reverse=True)
        total, _ = parts[stage]
        for other in others:
            gradient, self.writer.at = parts[other]
            total = self._sum(total, gradient)
        self.writer.at, self.gradients[value] = at, total

    def returned(self, leaf: fx.Node, dtype: torch.dtype) -> fx.Node:
        """The gradient of a leaf, in the leaf's own type."""
        self._join((leaf, 0))
        gradient = self.gradients[leaf, 0]
        known = self._wide.get(gradient, tensor_of(leaf).dtype)
        return gradient if known == dtype else self.writer.add(cast, (gradient, dtype))

    def _in(self, gradient: fx.Node, dtype: torch.dtype) -> fx.Node:
        """A gradient in the type of its value; one that was reduced may have a wider one."""
        narrow = self._wide.get(gradient, dtype) != dtype
        return self.writer.add(cast, (gradient, dtype)) if narrow else gradient

    def _given(self, step: Step) -> list[fx.Node | None]:
        """The gradients of what an op gives, as the backward of the op takes them."""
        types = [x.dtype for x in results_of(info(step.node).value)]
        found = ((self.gradients.get((step.node, i)), i) for i in step.wants.given)
        return [None if x is None else self._in(x, types[i]) for x, i in found]

    def write(self, step: Step) -> None:
        """Write the backward of a node that a gradient reaches."""
        if not any((step.node, i) in self.gradients for i in step.wants.given):
            return
        self.writer.at = step.node
        for i in step.wants.given:
            self._join((step.node, i))
        if is_reshard(step.node):
            self._back_over(step)
        elif step.traced is None:
            self._pulled(step, self._given(step))
        else:
            self._traced_back(step, step.traced, self._given(step))

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
        pairs, node = reshards_of(step.node), step.node
        there = [i for i in step.wants.wanted if (node, i) in self.gradients]
        ways = tuple(pairs[i][1].adjoint for i in there)
        values = [pairs[i][0] for i in there]
        given = zip(there, values, ways, strict=True)
        xs = tuple(self._sent(self.gradients[node, i], x, way) for i, x, way in given)
        dtype, changes = self._wide.get(xs[0]), (node, there)
        if not is_bundle(node):
            groups = [self.writer.now(by) for by in node.args[2:] if isinstance(by, fx.Node)]
            args = (xs[0], ways[0], *groups)
            made = self.writer.add(apply_collective, args, changes=changes, dtype=dtype)
            self._arrived(values[0], made, xs[0])
            return
        made = self.writer.add(apply_collectives, (xs, ways), changes=changes, dtype=dtype)
        for place, x in enumerate(xs):
            item = self.writer.add(operator.getitem, (made, place))
            self._arrived(values[place], item, x)

    def _sent(self, gradient: fx.Node, value: fx.Node, way: Collective) -> fx.Node:
        """The gradient of a value in the type in which a collective takes it."""
        own = tensor_of(value).dtype
        known = self._wide.get(gradient, own)
        wanted = self._reduced.dtype(value, way) if way.sends else known
        if known == wanted:
            return gradient
        made = self.writer.add(cast, (gradient, wanted))
        if wanted != own:
            self._wide[made] = wanted
        return made

    def _arrived(self, value: fx.Node, gradient: fx.Node, sent: fx.Node) -> None:
        """Give a value what a collective has made of a gradient, which keeps its type."""
        if sent in self._wide:
            self._wide[gradient] = self._wide[sent]
        self.give(value_of(value), gradient)
