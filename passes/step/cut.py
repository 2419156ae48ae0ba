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

from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import info
from shardlang.passes.step.cut_net import ASKED, THERE, CutNet
from shardlang.passes.step.prices import Prices


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
    _net: CutNet = field(init=False)
    _read: set[fx.Node] = field(init=False)
    _users: dict[fx.Node, list[fx.Node]] = field(init=False)
    _storages: dict[fx.Node, frozenset[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._bytes = {node: self.prices.bytes(node) for node in self.forward}
        self._work = {node: self.prices.work(node) for node in self.may}
        back = {n: [u for u in n.users if info(u).backward] for n in self.forward}
        self._read = {node for node, users in back.items() if users}
        self._users = {n: [u for u in n.users if u not in back[n]] for n in self.forward}
        self._storages = {node: self.prices.storages(node) for node in self.forward}
        self._net = CutNet()
        for node in self.forward:
            self._add(self._net, node)

    def cheapest(self, per_byte: int, per_work: int) -> Choice:
        """The choice with the least price, of equal ones that which computes the least again.

        Args:
            per_byte: the price of a byte that is kept.
            per_work: the price of an operation.
        """
        asked = self._net.asked(per_byte, per_work)
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
            asked = node in self._read
            if asked or any(u in needed and u in again for u in self._users[node]):
                needed.add(node)
        kept = frozenset().union(*(self._storages[n] for n in needed - again))
        left = kept.difference(self.there)
        work = sum(self._work_of(n) for n in needed & again)
        sizes = self.prices.replay.storages
        return Choice(frozenset(again & needed), sum(sizes[n].bytes for n in left), work)

    def _work_of(self, node: fx.Node) -> int:
        """The operations of a value that may be computed again."""
        return self._work.get(node, 0)

    def _add(self, net: CutNet, node: fx.Node) -> None:
        """The edges of one value."""
        after, keep = ("out", node), self._bytes[node]
        if node in self._read:
            net.add(after, ASKED)
        if node not in self.may and node not in self.must:
            net.add(THERE, after, bytes=keep)
            return
        before = ("in", node)
        if node in self.must or any(is_item(user) for user in node.users):
            net.add(before, after)
        else:
            net.add(before, after, bytes=keep)
        net.add(THERE, before, work=self._work_of(node))
        for source in node.all_input_nodes:
            if source.op == "call_function":
                net.add(("out", source), before)
