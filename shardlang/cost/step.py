"""What a program sends in one step, and what its leaves hold."""

from __future__ import annotations

from shardlang.cost.held import local_bytes
from shardlang.cost.reshards import sent_backward, sent_forward
from shardlang.ir.graph import is_item, reshard_nodes, reshards_of
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram, apply_reshards, with_gradient
from shardlang.ir.reduced import Reduced


def step_bytes(program: LocalProgram, train: bool) -> int:
    """Bytes that the busiest device sends in the forward and, if there is one, the backward."""
    flowing = with_gradient(program) if train else set()
    reduced, total = Reduced(program), 0
    for node in reshard_nodes(program.graph):
        pairs = reshards_of(node)
        total += sent_forward(pairs)
        if node not in flowing:
            continue
        if node.target is apply_reshards:
            alive = {user.args[1] for user in node.users if is_item(user) and user in flowing}
            pairs = [pair for index, pair in enumerate(pairs) if index in alive]
        total += sent_backward(pairs, reduced) + (sent_forward(pairs) if info(node).regather else 0)
    return total


def leaf_bytes(program: LocalProgram) -> int:
    """Bytes of all leaves on the fullest device."""
    return sum(local_bytes(leaf.at_rest, leaf.dtype) for leaf in program.leaves)
