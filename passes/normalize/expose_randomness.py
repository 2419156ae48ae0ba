"""Write attention with dropout out as single operators.

A fused attention draws its dropout mask inside the kernel, in an order that no sharded program can
follow. Written out as PyTorch's own composite does it (`_scaled_dot_product_attention_math` in
ATen), the mask comes from one `aten.dropout`, which draws the same numbers as eager does on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import randomness_exposed
from shardlang.passes.normalize.fx_edit import is_op
from shardlang.rules.attention import one_head_per_query
from shardlang.rules.call import Call

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class ExposeRandomness:
    """Write attention with dropout out as single operators."""

    name: str = "expose_randomness"
    establishes: ClassVar[tuple[Invariant, ...]] = (randomness_exposed,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Replace every attention with dropout."""
        expose_randomness(graph.graph)
        return graph


def expose_randomness(graph: fx.Graph) -> None:
    """Replace every attention with dropout in `graph` by matmul, softmax and dropout."""
    edit = Rewriter(graph)
    for node in list(graph.nodes):
        if is_op(node, [aten.scaled_dot_product_attention]) and _drops(node):
            edit.replace(node, _attention(edit, node))


def _drops(node: fx.Node) -> bool:
    return Call(node).number("dropout_p") > 0.0


def _attention(edit: Rewriter, node: fx.Node) -> fx.Node:
    """The value of an attention node, from `q: b h s d`, `k: b g t d`, `v: b g t e`."""
    call = Call(node)
    query, key, value = (call.operand(name) for name in ("query", "key", "value"))
    standard = call["scale"] is None
    scale = 1.0 / math.sqrt(tensor_of(query).shape[-1]) if standard else call.number("scale")
    root = math.sqrt(abs(scale))
    if call.flag("enable_gqa"):
        emit = partial(edit.call, like=node)
        key, value = (one_head_per_query(emit, x, query) for x in (key, value))
    query = edit.call(aten.mul.Tensor, query, math.copysign(root, scale), like=node)
    key = edit.call(aten.transpose.int, key, -2, -1, like=node)
    key = edit.call(aten.mul.Tensor, key, root, like=node)
    scores = edit.call(aten.matmul.default, query, key, like=node)
    scores = _masked(edit, scores, call)
    weights = edit.call(aten._safe_softmax.default, scores, -1, like=node)
    weights = edit.call(aten.dropout.default, weights, call["dropout_p"], True, like=node)
    return edit.call(aten.matmul.default, weights, value, like=node)


def _masked(edit: Rewriter, scores: fx.Node, attention: Call) -> fx.Node:
    """Scores with the attention mask applied."""
    mask, node = attention.optional("attn_mask"), attention.node
    if attention.flag("is_causal"):
        shape = list(tensor_of(scores).shape[-2:])
        ones = edit.call(
            aten.ones.default, shape, dtype=torch.bool, device=torch.device("cpu"), like=node
        )
        mask = edit.call(aten.tril.default, ones, like=node)
    if mask is None:
        return scores
    if tensor_of(mask).dtype is torch.bool:
        hidden = edit.call(aten.logical_not.default, mask, like=node)
        return edit.call(aten.masked_fill.Scalar, scores, hidden, -math.inf, like=node)
    return edit.call(aten.add.Tensor, scores, mask, like=node)
