"""A dropout written out: its mask is drawn by an op of its own, and the backward reads the mask."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.step import record
from shardlang.rules.call import Call
from shardlang.rules.dropout import PARTS
from shardlang.vjp.traced import Traced


def draws(target: object) -> bool:
    """Whether a call of a random op, or the part of it that draws, is a call of this."""
    tags = target.tags if isinstance(target, OpOverload) else ()
    drawn = torch.Tag.nondeterministic_seeded in tags
    return drawn or target is record or target in _MASKS


_MASKS = {parts.mask for parts in PARTS.values()}


def written_out_dropout(node: fx.Node, wanted: tuple[int, ...]) -> Traced | None:
    """The ops of a dropout whose operand is asked for its gradient; None of another op."""
    call = Call(node)
    parts = PARTS.get(call.target)
    if parts is None or len(wanted) != 1:
        return None
    graph = fx.Graph()
    operands = [graph.placeholder(f"operand_{i}") for i in range(len(call.slots))]
    cotangent = graph.placeholder("cotangent")
    slots = iter(operands)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: next(slots))
    x, p = operands[wanted[0]], call.number("p")
    mask = graph.call_function(parts.mask, args, kwargs)
    made = graph.call_function(parts.thin, (x, mask, p))
    back = graph.call_function(parts.thin, (cotangent, mask, p))
    results: list[fx.Node | None] = [made, mask] if parts.gives_mask else [made]
    return Traced(
        operands, [cotangent], results, {wanted[0]: back}, [mask, made], [back], parts.gives_mask
    )
