"""again: make values of the forward once more in the backward, instead of keeping them.

A backward op that reads such a value reads a copy, which stands in front of the first op that needs
it, behind the copies of what it is made of; so each is made once, and is there no longer than it is
read. Of a bucket the backward makes those values alone that it reads.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import StepProgram, apply_collectives, collectives_of, is_bucket


def make_again(program: StepProgram, again: Collection[fx.Node]) -> None:
    """Let the backward read none of some values of the forward, but copies of them.

    Args:
        again: with an item of what an op gives, the op, and with a bucket those of its items that
            the backward may make again.
    """
    copying = _Copying(program.graph, again)
    copying.run()
    made = {node.name: copy.name for node, copy in copying.copies.items()}
    program.again = {**program.again, **made}


class _Copying:
    def __init__(self, graph: fx.Graph, again: Collection[fx.Node]) -> None:
        self.graph, self.again = graph, again
        self.order = {node: place for place, node in enumerate(graph.nodes)}
        self.needed = self._needed()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.edit = Rewriter(graph)

    def _needed(self) -> set[fx.Node]:
        """The values that the backward reads, or of which it makes others that it reads."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node in self.again and any(
                info(user).backward or user in found for user in _readers(node)
            ):
                found.add(node)
        return found

    def run(self) -> None:
        """Visit the backward in order."""
        for node in [n for n in self.graph.nodes if info(n).backward]:
            there = [source for source in node.all_input_nodes if source in self.needed]
            for one in self._chain(there):
                self.copies[one] = self._copied(one, node)
            for source in there:
                node.replace_input_with(source, self.copies[source])
        self.graph.lint()

    def _chain(self, ends: Sequence[fx.Node]) -> list[fx.Node]:
        """What is to be made for some values, in order: all that has not been made yet."""
        seen: set[fx.Node] = set()
        todo = list(ends)
        while todo:
            node = todo.pop()
            if node in self.needed and node not in seen and node not in self.copies:
                seen.add(node)
                todo += self._sources(node)
        return sorted(seen, key=self.order.__getitem__)

    def _sources(self, node: fx.Node) -> Sequence[fx.Node]:
        """What the copy of a value is made of."""
        if not _gives_items(node):
            return node.all_input_nodes
        pairs = collectives_of(node)
        return [pairs[place_of(item)][0] for item in self._items(node)]

    def _items(self, bucket: fx.Node) -> list[fx.Node]:
        return [item for item in bucket.users if item in self.needed]

    def _copied(self, node: fx.Node, before: fx.Node) -> fx.Node:
        if _gives_items(node):
            return self._copied_bucket(node, before)
        source = node.args[0] if is_item(node) else None
        if isinstance(source, fx.Node) and _gives_items(source):
            taken = (self.copies[source], self._items(source).index(node))
            return self.edit.add(operator.getitem, taken, record=_back(node), before=before)
        with self.graph.inserting_before(before):
            copy = self.graph.node_copy(node, lambda n: self.copies.get(n, n))
        set_info(copy, _back(node))
        return copy

    def _copied_bucket(self, bucket: fx.Node, before: fx.Node) -> fx.Node:
        pairs = collectives_of(bucket)
        places = [place_of(item) for item in self._items(bucket)]
        mine = [pairs[place] for place in places]
        values = tuple(self.copies.get(x, x) for x, _ in mine)
        given = (values, tuple(collective for _, collective in mine))
        record = _back(bucket)
        if record.moves is not None:
            made = tuple(record.moves.places[place] for place in places)
            record = replace(record, moves=replace(record.moves, places=made))
        return self.edit.add(apply_collectives, given, record=record, before=before)


def _gives_items(node: fx.Node) -> bool:
    """Whether a node is a bucket of collectives."""
    return node.op == "call_function" and is_bucket(node)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a value; of a bucket in the forward, what it makes of this value."""
    for user in node.users:
        if info(user).backward or not _gives_items(user):
            yield user
            continue
        pairs = collectives_of(user)
        yield from (item for item in user.users if pairs[place_of(item)][0] is node)


def _back(node: fx.Node) -> NodeInfo:
    """The record of a copy in the backward."""
    known = info(node)
    assert not known.random, f"{node} draws, and would draw other numbers"
    return replace(known, backward=True, regather=False)


def place_of(item: fx.Node) -> int:
    """Which of the values of a node an item is."""
    place = item.args[1]
    assert isinstance(place, int), f"{item} is no item"
    return place
