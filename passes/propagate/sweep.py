"""Sweeps over the ops of the dimension graph, forward and backward, to a fixed point.

What an op takes from its neighbours depends on its own layout and on theirs alone. So once a sweep
has visited an op, it visits it again only when one of these has changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from shardlang.ir.graph import producer
from shardlang.ir.mesh import Axis
from shardlang.passes.propagate.flow import Allow, Flow


class Sweep:
    """Sweeps under one condition; each run goes on from the fixed point of the one before.

    Args:
        allow: which factors of an op may be laid out.
        axes: the axes that may flow.
        only: the ops that take part, if not all.
    """

    def __init__(
        self, flow: Flow, allow: Allow, axes: Iterable[Axis], only: Iterable[fx.Node] | None = None
    ) -> None:
        self.flow, self.allow, self.axes = flow, allow, frozenset(axes)
        some = frozenset(flow.nodes if only is None else only)
        self.nodes = [n for n in flow.nodes if n in some and n not in flow.waiting]
        self._known = frozenset(self.nodes)
        self._ahead, self._back = set(self.nodes), set(self.nodes)
        self._read = len(flow.changes)

    def run(self) -> bool:
        """Sweep until nothing changes; whether anything did."""
        before = len(self.flow.changes)
        while self._is_due():
            for node in self.nodes:
                self.forward(node)
            for node in reversed(self.nodes):
                self._backward(node)
        return len(self.flow.changes) > before

    def forward(self, node: fx.Node) -> None:
        """Let an op take what its operands suggest, if that may have changed."""
        self._catch_up()
        if node in self._ahead:
            self._ahead.discard(node)
            self.flow.forward(node, self.allow, self.axes)

    def _backward(self, node: fx.Node) -> None:
        self._catch_up()
        if node in self._back:
            self._back.discard(node)
            self.flow.backward(node, self.allow, self.axes)

    def _is_due(self) -> bool:
        self._catch_up()
        return bool(self._ahead or self._back)

    def _catch_up(self) -> None:
        """Let every op that has changed be visited again, and its neighbours."""
        dims, changes = self.flow.dims, self.flow.changes
        if self._read == len(changes):
            return
        for node in changes[self._read :]:
            readers = (use.reader for use in dims.uses[node])
            sources = (producer(value)[0] for value in dims.operands[node])
            self._ahead |= self._known.intersection((node, *readers))
            self._back |= self._known.intersection((node, *sources))
        self._read = len(changes)
