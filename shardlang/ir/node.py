"""The one record that a node carries, and how it is read and written.

Nothing else is kept in `node.meta`; what `torch.export` leaves there is read in capture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.records import FullGather, Stated
from shardlang.ir.rule import Sharding

_KEY = "shardlang"

Value: TypeAlias = "torch.Tensor | Sequence[torch.Tensor | None] | None"
"""The global value of a node: a fake tensor, several, or none that is a tensor."""


@dataclass(frozen=True, slots=True)
class Moves:
    """The changes of layout of which a collective of a step program is one direction.

    Attributes:
        node: the reshard node of the forward program, by name.
        places: those of its changes that are made, in order.
        adjoint: whether it is the direction of the gradients.
    """

    node: str
    places: tuple[int, ...]
    adjoint: bool = False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """All that is known of one node.

    Attributes:
        value: the global fake tensor, or those of an op with several results.
        module: the dotted name of the innermost module.
        source: the innermost line of the model's code, `file.py:12`.
        no_grad: made where the model has gradients switched off.
        leaf: what a placeholder of a traced graph stands for.
        constant: the number that a constant of no dims holds.
        stated: the layout that the spec states.
        sharding: how the op is split; leaves and ops have one, from `bind_rules` on.
        differentiable: whether a gradient flows through the value, from `bind_rules` on.
        draws_in: the order in memory of the operand that a random op draws for.
        layout: how the value lies, labelled; several for a bucket. From `type_gradients` on.
        reader: the node for which a reshard was inserted.
        full_gather: the change of layout that the reshard is part of, if it passes a wider layout.
        regather: gather again for the backward instead of keeping the value.
        held: a gather that is made once after every update: its value is at hand.
        random: whether the op draws random numbers, from `localize` on.
        backward: whether a node of a step program belongs to the backward.
        change: the name of the change of layout of which a collective is one direction.
        moves: the same changes in the forward program.
        dtype: of what a collective moves.
        stage: the stage of a pipeline that computes it, or that holds a parameter.
    """

    value: Value = None
    module: str = ""
    source: str = ""
    no_grad: bool = False
    leaf: Leaf | None = None
    constant: bool | int | float | complex | None = None
    stated: Stated | None = None
    sharding: Sharding | None = None
    differentiable: bool = False
    draws_in: tuple[int, ...] | None = None
    layout: Layout | tuple[Layout, ...] | None = None
    reader: str = ""
    full_gather: FullGather | None = None
    regather: bool = False
    held: bool = False
    random: bool = False
    backward: bool = False
    change: str = ""
    moves: Moves | None = None
    dtype: torch.dtype | None = None
    stage: int | None = None


_NOTHING = NodeInfo()


def info(node: fx.Node) -> NodeInfo:
    """The record of a node; an empty one if it has none."""
    found: NodeInfo = node.meta.get(_KEY, _NOTHING)
    return found


def set_info(node: fx.Node, made: NodeInfo) -> None:
    """Give a node its record, in place of the one that it has."""
    node.meta[_KEY] = made


def tensor_of(node: fx.Node) -> torch.Tensor:
    """The global fake tensor of a node that is one tensor."""
    value = info(node).value
    assert isinstance(value, torch.Tensor), f"{node} is not one tensor"
    return value


def returned_nodes(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes that a graph returns, in order."""
    returned = graph.output_node().args[0]
    assert isinstance(returned, (tuple, list))
    nodes = tuple(node for node in returned if isinstance(node, fx.Node))
    assert len(nodes) == len(returned), f"{returned} are not all nodes"
    return nodes


def results_of(value: Value) -> list[torch.Tensor]:
    """The tensors of a value, one for each result that is there."""
    results = value if isinstance(value, (list, tuple)) else [value]
    return [result for result in results if isinstance(result, torch.Tensor)]


def tensors_of(node: fx.Node) -> list[torch.Tensor]:
    """The global fake tensors of a node, one for each result that is there."""
    return results_of(info(node).value)


def has_several(node: fx.Node) -> bool:
    """Whether the node's value is that of an op with several results."""
    return isinstance(info(node).value, (list, tuple))


def is_ordered(node: fx.Node) -> bool:
    """Whether a value has rows that a route has sent out."""
    layout = info(node).layout
    return isinstance(layout, Layout) and any(layout.orders)


def layout_of(node: fx.Node) -> Layout:
    """The labelled layout of a node that is one tensor."""
    layout = info(node).layout
    assert isinstance(layout, Layout), f"{node} has no layout"
    return layout
