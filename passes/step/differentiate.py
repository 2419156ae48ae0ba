"""differentiate: the backward, written out behind the forward in one graph.

Every op through which a gradient flows gives the ops of its forward and those of its backward
(`vjp`); every reshard gives its two collectives, which come from the one table of changes. The
backward visits the ops in reverse, and adds the gradients of a value that several ops read in the
order in which they come. What is saved between the two is what a backward op reads of the forward.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx
from torch.fx.node import Target

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import tree_map_only
from shardlang.ir.device_values import size_at
from shardlang.ir.graph import is_held, is_item, is_reshard, producer, read_by, reshards_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import NodeInfo, info, results_of, set_info
from shardlang.ir.program import LocalProgram, nodes_of_results
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import (
    Operand,
    StepProgram,
    apply_collective,
    apply_collectives,
    pull,
    record,
)
from shardlang.passes.step.by_itself import by_itself
from shardlang.passes.step.dropouts import draws
from shardlang.passes.step.fold_views import gives_view
from shardlang.passes.step.local_calls import operands_of
from shardlang.passes.step.steps_back import (
    Step,
    Value,
    is_bundle,
    places_of,
    steps_back,
    value_of,
)
from shardlang.passes.step.traced import Traced


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
    return _Differentiation(program, trained, set(given), {*given, *ready_for}).run()


class _Differentiation:
    def __init__(
        self,
        program: LocalProgram,
        trained: Collection[str],
        given: Collection[str],
        ready_for: Collection[str],
    ) -> None:
        self.given, self.ready_for = given, ready_for
        self.program, self.graph = program, fx.Graph()
        names = set(trained)
        self.leaves = {leaf.node: leaf.name for leaf in program.leaves}
        self.kept = {leaf.node: leaf.gathered for leaf in program.leaves}
        self.trained = {
            self.leaves[n.name]: n
            for n in program.graph.find_nodes(op="placeholder")
            if self.leaves[n.name] in names
        }
        self.steps: dict[fx.Node, Step] = {}
        self.made: dict[fx.Node, fx.Node] = {}
        self.parts: dict[Value, fx.Node] = {}
        self.gradients: dict[Value, fx.Node] = {}
        self.views: dict[str, fx.Node] = {}
        self.at: fx.Node | None = None
        self.returning = False

    def run(self) -> StepProgram:
        """Find out who is asked for what, write the forward, write the backward."""
        seeds = self._results(self.ready_for)
        ends, trained = list(seeds.values()), set(self.trained.values())
        self.steps = by_itself(lambda: steps_back(self.program, ends, trained))
        nodes = list(self.program.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                self._leaf(node)
        names = self._cotangents(self._results(self.given))
        for node in nodes:
            if node.op == "call_function":
                self._forward(node)
        self.returning = True
        for node in reversed(nodes):
            if node in self.steps:
                self._backward(self.steps[node])
        return self._returned(names)

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

    # forward

    def _copy(self, node: fx.Node) -> None:
        self.made[node] = self.graph.node_copy(node, lambda n: self._now(n))
        set_info(self.made[node], info(node))

    def _leaf(self, node: fx.Node) -> None:
        """A leaf, as its value lies at rest."""
        self._copy(node)
        gathered = self.kept[node.name]
        if gathered is not None:
            set_info(self.made[node], replace(info(node), layout=gathered))

    def _now(self, node: fx.Node) -> fx.Node:
        """A value of the forward program in the step program."""
        return self.made[node]

    def _forward(self, node: fx.Node) -> None:
        self.at = node
        if info(node).held:
            self.made[node] = self._now(read_by(node)[0])
        elif is_held(node):
            return
        elif is_reshard(node):
            self._collective(node)
        elif is_item(node) and producer(node)[0] in self.steps:
            self.made[node] = self._part(*producer(node), node)
        elif node in self.steps:
            self._op(self.steps[node])
        else:
            self._copy(node)

    def _part(self, source: fx.Node, index: int, item: fx.Node | None) -> fx.Node:
        if (source, index) not in self.parts:
            place = places_of(source)[index]
            taken = (self.made[source], place)
            self.parts[source, index] = self._add(operator.getitem, taken, like=item)
        return self.parts[source, index]

    def _collective(self, node: fx.Node) -> None:
        pairs = [(self._now(x), reshard.forward) for x, reshard in reshards_of(node)]
        if is_bundle(node):
            xs, collectives = zip(*pairs, strict=True)
            self.made[node] = self._add(apply_collectives, (xs, collectives), None, node, node)
            return
        groups = [self._now(by) for by in node.args[2:] if isinstance(by, fx.Node)]
        self.made[node] = self._add(apply_collective, (*pairs[0], *groups), None, node, node)

    def _op(self, step: Step) -> None:
        operands = [self._now(n) for n in operands_of(step.node)]
        if step.traced is None:
            self._recorded(step, operands)
            return
        traced = step.traced
        step.saved.update(zip(traced.operands, operands, strict=True))
        if traced.whole:
            self._itself(step, traced)
            return
        last = {r: i for i, r in enumerate(r for r in traced.results if r is not None)}
        for one in traced.forward:
            like = step.node if len(last) == 1 and one in last else None
            step.saved[one] = self._emit(one, step.saved, like)
        results = [r and step.saved[r] for r in traced.results]
        if not traced.several:
            assert results[0] is not None
            self.made[step.node] = results[0]
            return
        for index, result in enumerate(r for r in results if r is not None):
            self.parts[step.node, index] = result

    def _itself(self, step: Step, traced: Traced) -> None:
        """The op as it is."""
        node = step.node
        self._copy(node)
        results = [r for r in traced.results if r is not None]
        if not traced.several:
            step.saved[results[0]] = self.made[node]
            return
        items = {u.args[1]: u for u in node.users if is_item(u)}
        for index, (result, place) in enumerate(zip(results, places_of(node), strict=True)):
            if any(result in n.all_input_nodes for n in traced.backward):
                step.saved[result] = self._part(node, index, items.get(place))

    def _recorded(self, step: Step, operands: Sequence[fx.Node]) -> None:
        node, count = step.node, iter(range(len(operands)))
        args, kwargs = tree_map_only(
            fx.Node, lambda _: Operand(next(count)), (tuple(node.args), dict(node.kwargs))
        )
        given = (node.target, args, kwargs, tuple(operands), step.wants.wanted, step.wants.given)
        made = self._add(record, given, name=f"{node.name}_recorded")
        places = places_of(node)
        value = info(node).value
        several = isinstance(value, (list, tuple))
        kept = len(value) if isinstance(value, (list, tuple)) else 1
        step.kept = self._add(operator.getitem, (made, kept))
        for index, place in enumerate(places):
            part = self._add(operator.getitem, (made, place), like=None if several else node)
            self.parts[node, index] = part
            if not several:
                self.made[node] = part

    def _emit(
        self, node: fx.Node, env: dict[fx.Node, fx.Node], like: fx.Node | None = None
    ) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        if not (self.returning and gives_view(node.target)):
            return self._add(node.target, args, kwargs, like)
        same = str((node.target, args, kwargs))
        if same not in self.views:
            self.views[same] = self._add(node.target, args, kwargs, like)
        return self.views[same]

    def _add(
        self,
        target: Target,
        args: Args,
        kwargs: Kwargs | None = None,
        like: fx.Node | None = None,
        changes: fx.Node | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Add a call.

        Args:
            like: the node whose value it gives, and whose name it takes.
            changes: the reshard node of which it is one direction.
        """
        name = like.name if like is not None else name
        known = info(like) if like is not None else self._origin(target)
        change = reshards_of(changes)[0][1].kind.value if changes is not None else ""
        known = replace(known, backward=self.returning, change=change)
        return Rewriter(self.graph).add(target, args, kwargs, record=known, name=name)

    def _origin(self, target: Target) -> NodeInfo:
        """The record of a node that the model does not name."""
        place = info(self.at) if self.at is not None else NodeInfo()
        random = place.random and draws(target)
        return NodeInfo(module=place.module, source=place.source, random=random)

    # backward

    def _cotangents(self, seeds: Mapping[str, fx.Node]) -> tuple[str, ...]:
        self.returning = True
        for number, node in enumerate(seeds.values()):
            made = self.graph.placeholder(f"cotangent_{number}")
            layout = info(node).layout
            assert isinstance(layout, Layout)
            record = NodeInfo(info(node).value, layout=layout.dual(), backward=True)
            set_info(made, record)
            self._give(value_of(node), made)
        self.returning = False
        return tuple(seeds)

    def _give(self, value: Value, gradient: fx.Node) -> None:
        """Add to the gradient of a value."""
        known = self.gradients.get(value)
        if known is not None:
            gradient = self._add(torch.ops.aten.add.Tensor, (known, gradient))
        self.gradients[value] = gradient

    def _backward(self, step: Step) -> None:
        """Write the backward of a node that a gradient reaches."""
        given = [self.gradients.get((step.node, i)) for i in step.wants.given]
        if not any(given):
            return
        self.at = step.node
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
            env[one] = self._emit(one, env)
        for i, operand in enumerate(operands_of(step.node)):
            gradient = traced.gradients.get(i)
            if gradient is not None:
                self._give(value_of(operand), env[gradient])

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
        return self._add(torch.ops.aten.zeros.default, (sizes,), named)

    def _pulled(self, step: Step, given: Sequence[fx.Node | None]) -> None:
        made = self._add(pull, (step.kept, tuple(given)), name=f"{step.node.name}_pulled")
        operands = operands_of(step.node)
        for place, i in enumerate(step.wants.wanted):
            self._give(value_of(operands[i]), self._add(operator.getitem, (made, place)))

    def _back_over(self, step: Step) -> None:
        pairs = reshards_of(step.node)
        there = [i for i in step.wants.wanted if (step.node, i) in self.gradients]
        xs = tuple(self.gradients[step.node, i] for i in there)
        ways = tuple(pairs[i][1].adjoint for i in there)
        if not is_bundle(step.node):
            groups = [self._now(by) for by in step.node.args[2:] if isinstance(by, fx.Node)]
            made = self._add(apply_collective, (xs[0], ways[0], *groups), changes=step.node)
            self._give(value_of(pairs[0][0]), made)
            return
        made = self._add(apply_collectives, (xs, ways), changes=step.node)
        for place, i in enumerate(there):
            self._give(value_of(pairs[i][0]), self._add(operator.getitem, (made, place)))

    def _returned(self, names: tuple[str, ...]) -> StepProgram:
        results = [self._now(n) for n in nodes_of_results(self.program)]
        found = {
            name: self.gradients[n, 0]
            for name, n in self.trained.items()
            if (n, 0) in self.gradients
        }
        self.graph.output((tuple(results), tuple(found.values())))
        _drop_unread(self.graph)
        self.graph.lint()
        return StepProgram(
            self.program.mesh, self.graph, self.program.leaves, self.program.results, names,
            tuple(found), self._adjoints(),
        )  # fmt: skip

    def _adjoints(self) -> dict[str, str]:
        found = {node.name: self.gradients.get(value_of(node)) for node in self.program.graph.nodes}
        return {name: gradient.name for name, gradient in found.items() if gradient is not None}


def _drop_unread(graph: fx.Graph) -> None:
    """Drop what nothing reads: all but draws, without which later draws would be others."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not info(node).random:
            graph.erase_node(node)
