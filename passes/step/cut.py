"""The cheapest values to keep for a backward: one minimum cut.

Every value of the forward has two vertices. Source side is *there*, sink side is *asked for*. What
the backward reads is asked for; leaves are there. Cut edges are

- from *there* to a value's first vertex: it is computed again, at the price of its operations, and
  asks for its operands;
- from its first vertex to its second: it is kept, at the price of its bytes.

A value that may not be computed again has its second vertex alone. This is the cut of torch's
min-cut partitioner with a price on what is computed again, in the place of rules that forbid it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov
from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import info
from shardlang.passes.step.prices import Prices

THERE, ASKED = "there", "asked for"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is computed again, the bytes that are kept beside, and the operations that it takes."""

    again: frozenset[fx.Node]
    bytes: int
    work: int


@dataclass(slots=True)
class Cut:
    """The choices of one step.

    Attributes:
        there: the storages that are there whatever is kept.
        forward: the calls of the forward, in order.
        may: those that may be computed again.
        must: those that are in any case.
    """

    prices: Prices
    there: Collection[int]
    forward: Sequence[fx.Node]
    may: Collection[fx.Node]
    must: Collection[fx.Node]
    _bytes: dict[fx.Node, int] = field(init=False)
    _work: dict[fx.Node, int] = field(init=False)

    def __post_init__(self) -> None:
        self._bytes = {node: self.prices.bytes(node) for node in self.forward}
        self._work = {node: self.prices.work(node) for node in self.may}

    def cheapest(self, per_byte: int, per_work: int) -> Choice:
        """The choice with the least price, of equal ones that which computes the least again.

        Args:
            per_byte: the price of a byte that is kept.
            per_work: the price of an operation.
        """
        net = nx.DiGraph()
        net.add_nodes_from([THERE, ASKED])
        for node in self.forward:
            self._add(net, node, per_byte, per_work)
        _, (_, asked) = nx.minimum_cut(net, THERE, ASKED, flow_func=boykov_kolmogorov)
        return self.choice({n for n in self.may if ("in", n) in asked})

    def fewest_bytes(self) -> Choice:
        """The choice that keeps the fewest bytes, of such that with the least work."""
        return self.cheapest(1 + sum(self._work.values()), 1)

    def least_work(self) -> Choice:
        """The choice with the least work, of such that which keeps the fewest bytes."""
        return self.cheapest(1, 1 + sum(self._bytes.values()))

    def choice(self, again: Collection[fx.Node]) -> Choice:
        """What it costs to compute some values again."""
        again = {*again, *self.must}
        needed: set[fx.Node] = set()
        for node in reversed(self.forward):
            if any(info(u).backward or (u in needed and u in again) for u in node.users):
                needed.add(node)
        kept = frozenset().union(*(self.prices.storages(n) for n in needed - again))
        left = kept.difference(self.there)
        work = sum(self._work_of(n) for n in needed & again)
        sizes = self.prices.replay.storages
        return Choice(frozenset(again & needed), sum(sizes[n].bytes for n in left), work)

    def _work_of(self, node: fx.Node) -> int:
        """The operations of a value that may be computed again."""
        return self._work.get(node, 0)

    def _add(self, net: nx.DiGraph, node: fx.Node, per_byte: int, per_work: int) -> None:
        """The edges of one value."""
        after, keep = ("out", node), per_byte * self._bytes[node]
        if any(info(user).backward for user in node.users):
            net.add_edge(after, ASKED)
        if node not in self.may and node not in self.must:
            net.add_edge(THERE, after, capacity=keep)
            return
        before = ("in", node)
        if node in self.must or any(is_item(user) for user in node.users):
            net.add_edge(before, after)
        else:
            net.add_edge(before, after, capacity=keep)
        net.add_edge(THERE, before, capacity=per_work * self._work.get(node, 0))
        for source in node.all_input_nodes:
            if source.op == "call_function":
                net.add_edge(("out", source), before)
