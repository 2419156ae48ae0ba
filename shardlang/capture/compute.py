"""A model that computes in a narrower type than its parameters and inputs have.

The model is traced with the casts in the place of its parameters: what its code then computes in
float32, it computes in float32. Buffers keep their type: tables of angles and running statistics
are made in it on purpose; the weights of a batch norm keep theirs beside them. In the traced graph
a cast parameter is a parameter of the narrower type, and says so (`Leaf.computes`); the step
program casts each device's part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info, set_info, tensor_of
from shardlang.ir.precision import wider
from shardlang.ir.rewriter import Rewriter

CAST = (LeafKind.PARAM, LeafKind.INPUT)


def call_in(
    dtype: torch.dtype, module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]
) -> object:
    """Call a module with its parameters and arguments cast to a type, where they are wider."""
    kept = set(_beside_statistics(module))
    params = {
        name: narrowed(param, dtype)
        for name, param in module.named_parameters()
        if narrowed_type(param.dtype, dtype) != param.dtype and param not in kept
    }
    given = pytree.tree_map_only(Tensor, lambda x: narrowed(x, dtype), (tuple(args), dict(kwargs)))
    made: object = torch.func.functional_call(module, params, *given)
    return made


def _beside_statistics(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of batch norms, which torch takes in the type of running statistics alone."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            yield from part.parameters()


def narrowed_type(own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """The narrower one of two floating types."""
    return dtype if own.is_floating_point and wider(dtype, own) == own else own


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A value in a type, if its own is wider."""
    return value.to(narrowed_type(value.dtype, dtype))


def fold_casts(graph: fx.Graph, leaves: Sequence[Leaf], dtype: torch.dtype | None) -> list[Leaf]:
    """Let leaves that are only read by their cast have its type; gives the leaves."""
    nodes = {node.name: node for node in graph.find_nodes(op="placeholder")}
    if dtype is None:
        return list(leaves)
    return [_folded(nodes[leaf.node], leaf, dtype) for leaf in leaves]


def _folded(node: fx.Node, leaf: Leaf, dtype: torch.dtype) -> Leaf:
    if leaf.kind not in CAST or narrowed_type(leaf.dtype, dtype) == leaf.dtype:
        return leaf
    readers = list(node.users)
    if not readers or not all(_casts(node, user, dtype) for user in readers):
        return leaf
    set_info(node, replace(info(node), value=tensor_of(readers[0])))
    for user in readers:
        Rewriter(node.graph).replace(user, node)
    return replace(leaf, computes=dtype)


def _casts(node: fx.Node, user: fx.Node, dtype: torch.dtype) -> bool:
    """Whether a reader only gives a value in another type."""
    value = info(user).value
    same = user.all_input_nodes == [node] and isinstance(value, Tensor) and value.dtype is dtype
    return same and user.target in (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)
