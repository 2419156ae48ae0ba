"""Bytes on the fullest device: what is certain, and an estimate of the activations.

The estimate adds up every value that autograd keeps for the backward, as the rules tell it. A value
is counted once, views not apart from their base; the gathered form of a stored parameter counts
unless it is gathered again, a parameter itself does not. Temporary buffers and the allocator's own
loss are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from shardlang.cost.held import local_bytes
from shardlang.cost.traffic import steps_of
from shardlang.ir.collective import Kind
from shardlang.ir.graph import is_item, is_step
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import has_several, info
from shardlang.ir.program import LocalProgram
from shardlang.ir.rule import Rule
from shardlang.plan.names import sharding_at
from shardlang.plan.types import Memory
from shardlang.rules.registry import traits_of
from shardlang.rules.streams import stream_key

if TYPE_CHECKING:
    from shardlang.spec.types import OptimizerDecl

_STATES = {"adam": 2, "adamw": 2}
"""Tensors of state per parameter."""


def estimate_memory(
    program: LocalProgram,
    flowing: set[fx.Node],
    optimizer: OptimizerDecl | None,
    train: bool = True,
) -> Memory:
    """Bytes on the first device, which holds the largest piece of everything.

    Args:
        flowing: the nodes through which a gradient flows.
        optimizer: as the spec states it; AdamW is assumed where it states none.
    """
    params = [leaf for leaf in program.leaves if leaf.kind is LeafKind.PARAM]
    trained = sum(local_bytes(p.layout, p.dtype) for p in params if p.trainable) if train else 0
    name = optimizer.name if optimizer is not None else "adamw"
    return Memory(
        params_bytes=sum(local_bytes(p.layout, p.dtype) for p in params),
        buffers_bytes=sum(
            local_bytes(b.layout, b.dtype) for b in program.leaves if b.kind is LeafKind.BUFFER
        ),
        gradients_bytes=trained,
        optimizer_bytes=trained * _states(name, optimizer),
        activations_bytes=sum(value_bytes(node) for node in kept_values(program, flowing)),
        optimizer_name=name if optimizer is not None else "adamw (assumed)",
    )


def _states(name: str, optimizer: OptimizerDecl | None) -> int:
    momentum = optimizer.kwargs.get("momentum", 0) if optimizer is not None else 0
    return _STATES.get(name, 1 if momentum else 0)


def value_bytes(node: fx.Node) -> int:
    """Bytes of the largest piece of a value."""
    layout, val = info(node).layout, info(node).value
    if not isinstance(layout, Layout) or not isinstance(val, torch.Tensor):
        return 0
    return local_bytes(layout, val.dtype)


def kept_values(program: LocalProgram, flowing: set[fx.Node]) -> list[fx.Node]:
    """The values that are kept for the backward, each once, in program order."""
    kept: set[fx.Node] = set()
    for node in program.graph.nodes:
        sharding = sharding_at(node)
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
        if is_step(whole):
            value, step = steps_of(whole)[index]
            return value if step.forward.kind is Kind.NOTHING else None
        return _in_memory_of(whole, index)
    if is_step(node):
        value, step = steps_of(node)[0]
        return value if step.forward.kind is Kind.NOTHING else None
    return _in_memory_of(node, 0) if node.op == "call_function" else None


def _in_memory_of(node: fx.Node, index: int) -> fx.Node | None:
    """The operand in whose memory a result lies."""
    memory = traits_of(node).memory
    place = memory[index] if index < len(memory) else None
    return None if place is None else node.all_input_nodes[place]
