"""regather: gather stored parameters again for the backward, instead of keeping them (ZeRO-3).

A backward op that reads a parameter made whole, or a view of one, reads another copy of the gather,
which stands in front of the first such op (Rajbhandari et al., 2020). The parameters of one bucket
are gathered again in one call, those alone that the backward reads.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import (
    StepProgram,
    apply_collective,
    apply_collectives,
    collectives_of,
    is_bucket,
    is_collective,
)
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step.fold_views import gives_view


def regather(program: StepProgram, options: StepOptions) -> StepProgram:
    """Read no gathered parameter of the forward in the backward."""
    _Again(program.graph).run()
    return program


class _Again:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.again: set[fx.Node] = set()
        for node in graph.nodes:
            if not info(node).backward and (_is_gathered(node) or self._is_view(node)):
                self.again.add(node)
        self.copies: dict[fx.Node, fx.Node] = {}

    def _is_view(self, node: fx.Node) -> bool:
        if node.op != "call_function" or not gives_view(node.target):
            return False
        return bool(node.args) and node.args[0] in self.again

    def run(self) -> None:
        """Visit the backward in order."""
        for node in list(self.graph.nodes):
            if info(node).backward and node.op == "call_function":
                for source in node.all_input_nodes:
                    if source in self.again:
                        node.replace_input_with(source, self._copy(source, node))
        if self.copies:
            self.graph.lint()

    def _copy(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """The value once more; made in front of `before` if it is not there."""
        if node not in self.again:
            return node
        if node not in self.copies:
            bucket = node.args[0] if is_item(node) else None
            if isinstance(bucket, fx.Node) and bucket.target is apply_collectives:
                self._copy_bucket(bucket, before)
            else:
                sources = {n: self._copy(n, before) for n in node.all_input_nodes}
                with self.graph.inserting_before(before):
                    self.copies[node] = self.graph.node_copy(node, sources.__getitem__)
                set_info(self.copies[node], _back(node))
        return self.copies[node]

    def _copy_bucket(self, bucket: fx.Node, before: fx.Node) -> None:
        pairs = collectives_of(bucket)
        items = [n for n in bucket.users if n in self.again and self._is_read_back(n)]
        mine = [pairs[place_of(item)] for item in items]
        values = tuple(self._copy(x, before) for x, _ in mine)
        edit = Rewriter(self.graph)
        given = (values, tuple(collective for _, collective in mine))
        made = edit.add(apply_collectives, given, record=_back(bucket), before=before)
        for place, item in enumerate(items):
            taken = (made, place)
            self.copies[item] = edit.add(operator.getitem, taken, record=_back(item), before=before)

    def _is_read_back(self, node: fx.Node) -> bool:
        """Whether the backward reads a value, or what is gathered or viewed of it."""
        return any(
            info(reader).backward or (reader in self.again and self._is_read_back(reader))
            for reader in _readers(node)
        )


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a value; of a bucket, what it makes of this value."""
    for user in node.users:
        if info(user).backward or not is_collective(user) or not is_bucket(user):
            yield user
            continue
        pairs = collectives_of(user)
        yield from (item for item in user.users if pairs[place_of(item)][0] is node)


def _back(node: fx.Node) -> NodeInfo:
    """The record of a copy in the backward."""
    return replace(info(node), backward=True, regather=False)


def place_of(item: fx.Node) -> int:
    """Which of the values of a node an item is."""
    place = item.args[1]
    assert isinstance(place, int), f"{item} is no item"
    return place


def _is_gathered(node: fx.Node) -> bool:
    """Whether a node is a parameter that is not to be kept."""
    if not info(node).regather or node.op != "call_function":
        return False
    return node.target is apply_collective or is_item(node)
