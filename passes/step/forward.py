"""The forward of a step: every node of the forward program, as its backward needs it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

from torch import fx

from shardlang.ir.compat import tree_map_only
from shardlang.ir.graph import is_held, is_item, is_reshard, producer, read_by, reshards_of
from shardlang.ir.node import info
from shardlang.ir.step import Operand, apply_collective, apply_collectives, record
from shardlang.passes.step.local_calls import operands_of
from shardlang.passes.step.step_writer import StepWriter
from shardlang.passes.step.steps_back import Step, is_bundle, places_of
from shardlang.vjp.traced import Traced


class ForwardWriter:
    """Writes the calls of the forward program."""

    def __init__(self, writer: StepWriter, steps: Mapping[fx.Node, Step]) -> None:
        self.writer, self.steps = writer, steps

    def write(self, node: fx.Node) -> None:
        """Write one call."""
        self.writer.at = node
        self.writer.cast_operands(node)
        if info(node).held:
            self.writer.held(node, read_by(node)[0])
        elif is_held(node):
            return
        elif is_reshard(node):
            self._collective(node)
        elif is_item(node) and producer(node)[0] in self.steps:
            self.writer.made[node] = self.writer.part(*producer(node), node)
        elif node in self.steps:
            self._op(self.steps[node])
        else:
            self.writer.copy(node)

    def _collective(self, node: fx.Node) -> None:
        pairs = [(self.writer.now(x), reshard.forward) for x, reshard in reshards_of(node)]
        changes = node, range(len(pairs))
        if is_bundle(node):
            xs, collectives = zip(*pairs, strict=True)
            made = self.writer.add(apply_collectives, (xs, collectives), like=node, changes=changes)
        else:
            groups = [self.writer.now(by) for by in node.args[2:] if isinstance(by, fx.Node)]
            given = (*pairs[0], *groups)
            made = self.writer.add(apply_collective, given, like=node, changes=changes)
        self.writer.made[node] = made

    def _op(self, step: Step) -> None:
        operands = [self.writer.now(n) for n in operands_of(step.node)]
        if step.traced is None:
            self._recorded(step, operands)
            return
        traced = step.traced
        step.saved.update(zip(traced.operands, operands, strict=True))
        if traced.whole:
            self._itself(step, traced)
            return
        named = _named(step.node, traced)
        for one in traced.forward:
            step.saved[one] = self.writer.emit(one, step.saved, named.get(one))
        results = [r and step.saved[r] for r in traced.results]
        if not traced.several:
            assert results[0] is not None
            self.writer.made[step.node] = results[0]
            return
        for index, result in enumerate(r for r in results if r is not None):
            self.writer.parts[step.node, index] = result

    def _itself(self, step: Step, traced: Traced) -> None:
        """The op as it is."""
        node = step.node
        self.writer.copy(node)
        results = [r for r in traced.results if r is not None]
        if not traced.several:
            step.saved[results[0]] = self.writer.made[node]
            return
        items = _items(node)
        for index, (result, place) in enumerate(zip(results, places_of(node), strict=True)):
            if any(result in n.all_input_nodes for n in traced.backward):
                step.saved[result] = self.writer.part(node, index, items.get(place))

    def _recorded(self, step: Step, operands: Sequence[fx.Node]) -> None:
        node, count = step.node, iter(range(len(operands)))
        args, kwargs = tree_map_only(
            fx.Node, lambda _: Operand(next(count)), (tuple(node.args), dict(node.kwargs))
        )
        given = (node.target, args, kwargs, tuple(operands), step.wants.wanted, step.wants.given)
        made = self.writer.add(record, given, name=f"{node.name}_recorded")
        places = places_of(node)
        value = info(node).value
        several = isinstance(value, (list, tuple))
        kept = len(value) if isinstance(value, (list, tuple)) else 1
        step.kept = self.writer.add(operator.getitem, (made, kept))
        items = _items(node)
        for index, place in enumerate(places):
            like = items.get(place) if several else node
            part = self.writer.add(operator.getitem, (made, place), like=like)
            self.writer.parts[node, index] = part
            if not several:
                self.writer.made[node] = part


def _named(node: fx.Node, traced: Traced) -> dict[fx.Node, fx.Node]:
    """By op of a trace that gives a result, the node of the forward program that is this result."""
    results = [r for r in traced.results if r is not None]
    if not traced.several:
        return {results[0]: node}
    items = _items(node)
    pairs = zip(results, places_of(node), strict=True)
    return {result: items[place] for result, place in pairs if place in items}


def _items(node: fx.Node) -> dict[object, fx.Node]:
    """By place among the results of a node, what picks it."""
    return {user.args[1]: user for user in node.users if is_item(user)}
