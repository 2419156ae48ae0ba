"""Which reductions of gradients are made in a narrower type than is stated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.node import info
from shardlang.ir.precision import wider
from shardlang.ir.reduced import SUMS
from shardlang.ir.step import cast, collectives_of, is_collective, is_wait, started_by


def narrow_sums(
    ends: Sequence[tuple[fx.Node, torch.dtype]], wide: torch.dtype | None
) -> Iterator[fx.Node]:
    """The collectives that add up narrower numbers than stated, on the way to some gradients.

    Args:
        ends: gradients, and the types of their leaves.
        wide: the type in which narrower gradients are to be reduced.
    """
    seen: set[fx.Node] = set()
    todo = list(ends) if wide is not None else []
    while todo:
        node, dtype = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_collective(node):
            pairs = collectives_of(node)
            types = [_type(x, dtype) for x, c in pairs if c.kind in SUMS and c.sends]
            if any(wider(one, wide) != one for one in types):
                yield node
        elif not _leads_on(node):
            continue
        todo.extend((x, dtype) for x in node.all_input_nodes)


def _leads_on(node: fx.Node) -> bool:
    return node.target is cast or is_item(node) or is_wait(node)


def _type(node: fx.Node, own: torch.dtype) -> torch.dtype:
    """The type of what a collective is given: a cast says it, and so does what has sent it."""
    if node.target is cast:
        dtype = node.args[1]
        assert isinstance(dtype, torch.dtype)
        return dtype
    sent = node.all_input_nodes[0] if is_item(node) else node
    sent = started_by(sent) if is_wait(sent) else sent
    known = info(sent).dtype if is_collective(sent) else None
    return own if known is None else known
