"""How long a step takes on a device that computes while one link sends: a clock for each.

A product takes a unit of time for each multiplication, another op nothing. A collective takes
`cost` for each byte that it sends, one after the other over the link, from its start on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, fx

from shardlang.cost.ring import sent_bytes
from shardlang.ir.step import collectives_of, is_collective, is_start, is_wait, started_by
from shardlang.runtime.simulate import PerDevice


@dataclass(slots=True)
class Timeline:
    """The clocks, as a simulator's `watch`.

    Attributes:
        now: when the first device is where the program is.
        products: the time of all products so far.
        sending: the time of all collectives so far.
    """

    cost: float
    now: float = 0.0
    products: float = 0.0
    sending: float = 0.0
    _free: float = 0.0
    _due: dict[fx.Node, float] = field(default_factory=dict)
    _widths: dict[fx.Node, int] = field(default_factory=dict)

    @property
    def hidden(self) -> float:
        """The share of the time of collectives in which products are made."""
        return 1 - (self.now - self.products) / self.sending

    def __call__(self, node: fx.Node, values: PerDevice) -> None:
        """Take in one node and what it gives on every device."""
        if is_collective(node):
            self._send(node)
        elif is_wait(node):
            self.now = max(self.now, self._due[started_by(node)])
        elif isinstance(values[0], Tensor) and values[0].dim():
            self._compute(node, values[0])

    def _send(self, node: fx.Node) -> None:
        pairs = [collective for _, collective in collectives_of(node) if collective.sends]
        time = self.cost * sum(sent_bytes(one, 8) for one in pairs)
        self.sending += time
        self._free = self._due[node] = max(self._free, self.now) + time
        if not is_start(node) and pairs:
            self.now = self._free

    def _compute(self, node: fx.Node, made: Tensor) -> None:
        self._widths[node] = made.shape[-1]
        if "mm" in str(node.target) or "linear" in str(node.target):
            time = made.numel() * self._widths[node.all_input_nodes[0]]
            self.now, self.products = self.now + time, self.products + time
