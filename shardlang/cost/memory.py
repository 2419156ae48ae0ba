"""The bytes that stay in memory: those at rest, and an estimate of what a backward needs.

The estimate adds up every value that autograd keeps for the backward, as the rules tell it. A value
is counted once, views not apart from their base; the gathered form of a stored parameter counts
unless it is gathered again, a parameter itself does not. Temporary buffers and the allocator's own
loss are not counted. All bytes are those of the first device, which has the largest shard of
everything.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from shardlang.cost.held import local_bytes
from shardlang.ir.collective import Kind
from shardlang.ir.graph import is_item, is_reshard, reshards_of
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import has_several, info, layout_of, tensor_of
from shardlang.ir.program import LocalProgram
from shardlang.ir.rule import Rule
from shardlang.rules.registry import traits_of
from shardlang.rules.streams import stream_key

_STATES = {"adam": 2, "adamw": 2}
"""Tensors of state per parameter."""


def leaf_bytes(leaves: Iterable[Leaf]) -> int:
    """Bytes of some leaves, as they lie at rest."""
    return sum(local_bytes(leaf.layout, leaf.dtype) for leaf in leaves)


def optimizer_states(name: str, *, momentum: bool) -> int:
    """How many tensors as large as the parameter an optimizer keeps for it.

    Args:
        momentum: whether it is one that keeps an average of the gradients where asked to (`sgd`).
    """
    return _STATES.get(name, int(momentum))


def kept_bytes(program: LocalProgram, flowing: set[fx.Node]) -> int:
    """Bytes of the values that are kept for the backward.

    Args:
        flowing: the nodes through which a gradient flows.
    """
    kept = kept_values(program, flowing)
    tensors = [node for node in kept if isinstance(info(node).value, torch.Tensor)]
    return sum(local_bytes(layout_of(node), tensor_of(node).dtype) for node in tensors)


def kept_values(program: LocalProgram, flowing: set[fx.Node]) -> list[fx.Node]:
    """The values that are kept for the backward, each once, in program order."""
    kept: set[fx.Node] = set()
    for node in program.graph.nodes:
        sharding = info(node).sharding
        if node in flowing and node.op == "call_function" and sharding is not None:
            kept.update(base_of(v) for v in _kept_by(node, sharding.rule, flowing))
    return [node for node in program.graph.nodes if node in kept and not _is_elsewhere(node)]


def _is_elsewhere(node: fx.Node) -> bool:
    """Whether a value need not be kept: a leaf is there anyway, or it is gathered again."""
    return node.op == "placeholder" or info(node).regather


def _kept_by(node: fx.Node, rule: Rule, flowing: set[fx.Node]) -> list[fx.Node]:
    """What one op keeps."""
    operands = [source for source in node.all_input_nodes if source.target is not stream_key]
    if len(operands) != len(rule.operands):
        return [] if rule.traits.is_view else operands
    kept = rule.kept(i for i, operand in enumerate(operands) if operand in flowing)
    return [*(operands[i] for i in sorted(kept)), *_results(node, rule.traits.kept_results)]


def _results(node: fx.Node, indices: frozenset[int]) -> list[fx.Node]:
    """The nodes of some results of an op; those that nothing reads have none."""
    if not has_several(node):
        return [node] if indices else []
    return [user for user in node.users if is_item(user) and user.args[1] in indices]


def base_of(node: fx.Node) -> fx.Node:
    """The node whose memory a value lies in."""
    while True:
        source = _shared(node)
        if source is None:
            return node
        node = source


def _shared(node: fx.Node) -> fx.Node | None:
    """The operand in whose memory a node's value lies."""
    if is_item(node):
        whole, index = node.args
        assert isinstance(whole, fx.Node) and isinstance(index, int)
        if is_reshard(whole):
            value, reshard = reshards_of(whole)[index]
            return value if reshard.forward.kind is Kind.NOTHING else None
        return _in_memory_of(whole, index)
    if is_reshard(node):
        value, reshard = reshards_of(node)[0]
        return value if reshard.forward.kind is Kind.NOTHING else None
    return _in_memory_of(node, 0) if node.op == "call_function" else None


def _in_memory_of(node: fx.Node, index: int) -> fx.Node | None:
    """The operand in whose memory a result lies."""
    memory = traits_of(node).memory
    place = memory[index] if index < len(memory) else None
    return None if place is None else node.all_input_nodes[place]
