"""The bytes that any program must send for the changes of layout of a program, by collective.

A *way* leads from a value, as its op makes it or as other ops read it, to a layout that some op
reads. The collectives on it have one bound. Each takes as much of it as it sends, the first first,
so that none has more bound than bytes. A sum that is made whole and then read by slices alone is
such a way: its bound is that of a reduce-scatter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from shardlang.cost.bound import least_bytes
from shardlang.cost.ring import sent_bytes
from shardlang.ir.collective import ReduceOp
from shardlang.ir.graph import Pair, is_item, is_reshard, reshards_of
from shardlang.ir.node import tensor_of
from shardlang.ir.program import apply_reshards
from shardlang.ir.reduced import Reduced

Step = tuple[fx.Node, int]
"""One change of a reshard node: the node, and the place of the change in it."""

Way = tuple[Step, ...]
Shares = dict[Step, int]
"""Bytes of the bounds that fall to each step."""


class Bounds:
    """What the reshards of one program must send at least, forward and backward."""

    def __init__(self, nodes: Iterable[fx.Node], reduced: Reduced | None = None) -> None:
        """`reduced`: in what gradients are sent; in the types of their values if not given."""
        self._reduced = reduced
        self.pairs: Mapping[Step, Pair] = {
            step: reshards_of(node)[step[1]] for node in nodes for step in steps_of(node)
        }
        self.made = {value: step for step in self.pairs for value in _made(step)}
        ways = [self._way(step) for step in self.pairs if self._ends(step)]
        none = dict.fromkeys(self.pairs, 0)
        self.forward = none | _shares(self._least(way, back=False) for way in ways)
        self.backward = none | _shares(self._least(way, back=True) for way in reversed(ways))

    def _way(self, step: Step) -> Way:
        """The steps that lead to the result of one, from the last value that ops read."""
        before = self.made.get(self.pairs[step][0])
        if before is None or self._is_alone(step) or self._ends(before):
            return (step,)
        return (*self._way(before), step)

    def _ends(self, step: Step) -> bool:
        """Whether anything but a further change reads what a step makes."""
        readers = (user for value in _made(step) for user in value.users)
        return self._is_alone(step) or not all(self._goes_on(user, step) for user in readers)

    def _goes_on(self, user: fx.Node, step: Step) -> bool:
        """Whether a reader changes the layout of what a step makes, as part of a way."""
        pairs = reshards_of(user) if is_reshard(user) else []
        mine = [(user, i) for i, (value, _) in enumerate(pairs) if self.made.get(value) == step]
        return bool(mine) and not any(map(self._is_alone, mine))

    def _is_alone(self, step: Step) -> bool:
        """Whether a change is no part of a way: a route, a halo, a maximum or a minimum.

        Its bound is what it sends: the rows that must go, the edges that are read.
        """
        reshard = self.pairs[step][1]
        goes_by = reshard.route or reshard.reads
        return goes_by is not None or reshard.reduce is not ReduceOp.SUM

    def _least(self, way: Way, *, back: bool) -> tuple[int, dict[Step, int]]:
        """The bound of a way or, for the gradient, of the way back; and what each step sends."""
        first, last = self.pairs[way[0]][1], self.pairs[way[-1]][1]
        sent = {step: self._sent(step, back=back) for step in (reversed(way) if back else way)}
        if self._is_alone(way[0]):
            return sum(sent.values()), sent
        ends = (last.dst.dual(), first.src.dual()) if back else (first.src, last.dst)
        return least_bytes(*ends, self._itemsize(way[0], back=back)), sent

    def _itemsize(self, step: Step, *, back: bool) -> int:
        value, reshard = self.pairs[step]
        if back and self._reduced is not None:
            return self._reduced.bytes_of(value, reshard.adjoint)
        return tensor_of(value).dtype.itemsize

    def _sent(self, step: Step, *, back: bool) -> int:
        reshard = self.pairs[step][1]
        way = reshard.adjoint if back else reshard.forward
        return sent_bytes(way, self._itemsize(step, back=back))


def steps_of(node: fx.Node) -> list[Step]:
    """The changes that a reshard node makes."""
    return [(node, place) for place in range(len(reshards_of(node)))]


def _shares(found: Iterable[tuple[int, dict[Step, int]]]) -> Shares:
    """The bounds of all ways, shared out among their steps; what a step sends is the limit."""
    shares: Shares = {}
    for bound, sent in found:
        for step, most in sent.items():
            had = shares.get(step, 0)
            given = min(bound, most - had)
            shares[step], bound = had + given, bound - given
    return shares


def _made(step: Step) -> list[fx.Node]:
    """The nodes of the value that a step makes."""
    node, place = step
    if node.target is not apply_reshards:
        return [node]
    return [user for user in node.users if is_item(user) and user.args[1] == place]
