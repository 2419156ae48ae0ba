"""Which calls of aten ops take random numbers."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.compat import OpOverload


def draws(node: fx.Node) -> bool:
    """Whether a call takes random numbers; an attention without dropout takes none."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    return _argument(node, target, "dropout_p") != 0


def _argument(node: fx.Node, target: OpOverload, name: str) -> object:
    """What a call gives for an argument; None where the op takes no such argument."""
    for place, one in enumerate(target._schema.arguments):
        if one.name == name:
            given = node.args[place] if place < len(node.args) else one.default_value
            return node.kwargs.get(name, given)
    return None
