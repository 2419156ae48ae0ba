"""What costs little to compute again: no product, no search, nothing that is sent or recorded."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import is_item
from shardlang.ir.step import is_collective, record
from shardlang.ir.traits import OpKind
from shardlang.ir.views import gives_view
from shardlang.rules.dropout import PARTS
from shardlang.rules.registry import find

_CHEAP = (OpKind.OTHER, OpKind.SOFTMAX, OpKind.GATE, OpKind.PAD, OpKind.LOSS)
_TAGS = (torch.Tag.pointwise, torch.Tag.reduction)


def is_cheap(node: fx.Node) -> bool:
    """Whether a node takes no more than to read its operands a few times."""
    if is_collective(node) or node.target is record:
        return False
    if is_item(node):
        return is_cheap(node.all_input_nodes[0])
    target = node.target
    thins = target in {parts.thin for parts in PARTS.values()}
    if thins or gives_view(target) or (isinstance(target, OpOverload) and _tagged(target)):
        return True
    rule = find(target)
    return rule is not None and rule.passes and rule.flops is None and rule.kind in _CHEAP


def _tagged(target: OpOverload) -> bool:
    return any(tag in target.tags for tag in _TAGS)
