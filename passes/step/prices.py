"""What it costs to keep a value of the forward, and what to compute it again, on the first device.

A value is kept in bytes, those of the memory that it lies in; it costs nothing where that stays
anyway: leaves and results, and what is kept whatever is decided. To compute it again costs its
operations: those of products of matrices, one for each byte that it reads or writes, and those that
could be done while a collective sends its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from shardlang.cost.effects import Held, TensorType, held_by
from shardlang.cost.flops import flops_of, types_in
from shardlang.cost.replay import Replay
from shardlang.cost.ring import sent_bytes
from shardlang.ir.graph import is_item
from shardlang.ir.node import info
from shardlang.ir.step import StepProgram, collectives_of, is_collective
from shardlang.passes.weigh.network import FLOPS_PER_BYTE
from shardlang.vjp.by_itself import by_itself


@dataclass(slots=True)
class Prices:
    """The prices of the values of one forward.

    Attributes:
        replay: the step without anything computed again, on the first device.
        free: the storages that stay whatever is decided.
    """

    replay: Replay
    free: set[int] = field(default_factory=set)

    @staticmethod
    def of(program: StepProgram) -> Prices:
        """Those of a step."""
        first = next(iter(program.mesh.coords()))
        replay = by_itself(functools.partial(_replayed, program, first))
        results, _ = program.returned
        leaves = [n for n in program.graph.find_nodes(op="placeholder") if not info(n).backward]
        made = Prices(replay)
        made.keep([*results, *leaves])
        return made

    def keep(self, nodes: Collection[fx.Node]) -> None:
        """Count some values as kept."""
        for node in nodes:
            self.free.update(self.storages(node))

    def storages(self, node: fx.Node) -> frozenset[int]:
        """The memory in which a value lies, or that it holds."""
        return frozenset(held_by(self.replay.made.get(node)))

    def bytes(self, node: fx.Node) -> int:
        """What it takes to keep a value; what its op gives beside it is kept by itself."""
        mine = self.storages(node) - self.free
        if is_item(node) and self.is_record(node):
            source = node.all_input_nodes[0]
            beside = [n for n in source.users if n is not node and is_item(n)]
            mine = mine.difference(*(self.storages(n) for n in beside))
        return sum(self.replay.storages[number].bytes for number in mine)

    def is_record(self, node: fx.Node) -> bool:
        """Whether a value is no tensor: what autograd holds of an op."""
        value = self.replay.made.get(node)
        return isinstance(value, Held) and not isinstance(value.type, TensorType)

    def work(self, node: fx.Node) -> int:
        """Operations that it takes to compute a value again where its operands are there."""
        if is_item(node):
            return 0
        touched = sum(map(self._size, (node, *node.all_input_nodes)))
        work = self.flops(node) + FLOPS_PER_BYTE * self.sent(node)
        return work + (0 if self.is_view(node) else touched)

    def is_view(self, node: fx.Node) -> bool:
        """Whether a value lies in the memory of others."""
        operands = map(self.storages, node.all_input_nodes)
        return self.storages(node) <= frozenset().union(*operands)

    def sent(self, node: fx.Node) -> int:
        """Bytes that a collective sends."""
        if not is_collective(node):
            return 0
        pairs = collectives_of(node)
        return sum(sent_bytes(c, self._type(x).dtype.itemsize) for x, c in pairs if c.sends)

    def flops(self, node: fx.Node) -> int:
        """Operations of the products of matrices in an op."""
        operands = node.all_input_nodes
        types = tuple(self._type(n) for n in operands if self._is_tensor(n))
        if is_collective(node) or len(types) < len(operands):
            return 0
        return flops_of(node, types, self.replay.made[node])

    def _size(self, node: fx.Node) -> int:
        return sum(one.bytes for one in types_in(self.replay.made.get(node)))

    def _is_tensor(self, node: fx.Node) -> bool:
        value = self.replay.made.get(node)
        return isinstance(value, Held) and isinstance(value.type, TensorType)

    def _type(self, node: fx.Node) -> TensorType:
        (found,) = types_in(self.replay.made[node])
        return found


def _replayed(program: StepProgram, coord: dict[str, int]) -> Replay:
    made = Replay(program, coord, "gloo")
    made.run()
    return made
