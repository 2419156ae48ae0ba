"""Collectives in two, the start and the wait for it; and what decides where these are to stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from shardlang.ir.collective import Kind
from shardlang.ir.compat import OpOverload
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.spare import reduces_in_place
from shardlang.ir.step import (
    STARTS,
    Stream,
    cast,
    collectives_of,
    is_bucket,
    is_collective,
    routed_by,
    wait_collective,
)


def split(graph: fx.Graph, held: Iterable[fx.Node]) -> None:
    """Part every collective that sends; one of rows on a route stays, whose sizes are data.

    Args:
        held: the inputs that are gathered ahead of their use.
    """
    given, returned = given_at_once(graph, held), only_returned(graph)
    for node in list(graph.nodes):
        if _sends(node):
            _part(node, _stream(node, given, returned))


def _sends(node: fx.Node) -> bool:
    if not is_collective(node) or routed_by(node) is not None:
        return False
    return all(collective.sends for _, collective in collectives_of(node))


def _stream(node: fx.Node, given: set[fx.Node], returned: set[fx.Node]) -> Stream:
    if all(x in given for x, _ in collectives_of(node)):
        return Stream.GATHERS
    return Stream.GRADIENTS if node in returned else Stream.ACTIVATIONS


def _part(node: fx.Node, stream: Stream) -> None:
    edit, known = Rewriter(node.graph), replace(info(node), value=None, layout=None)
    assert callable(node.target)
    target, args = STARTS[node.target], (*node.args, stream)
    start = edit.add(target, args, record=known, before=node, name=f"{node.name}_start")
    edit.become(node, wait_collective, (start,))


def given_at_once(graph: fx.Graph, held: Iterable[fx.Node]) -> set[fx.Node]:
    """Some inputs, and what follows from them alone without a collective."""
    found = set(held)
    for node in graph.nodes:
        if node.op != "call_function" or is_collective(node) or info(node).random:
            continue
        if node.all_input_nodes and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def only_returned(graph: fx.Graph) -> set[fx.Node]:
    """Values of the backward that only lead to what it returns: by collectives, and by ops that
    read nothing else but leaves."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "call_function" or not info(node).backward:
            continue
        if node.users and all(_leads_out(user, found) for user in node.users):
            found.add(node)
    return found


def _leads_out(user: fx.Node, found: set[fx.Node]) -> bool:
    return user.op == "output" or (user in found and (is_collective(user) or is_alone(user)))


def is_alone(node: fx.Node) -> bool:
    """Whether an op reads one value beside leaves."""
    return len([x for x in node.all_input_nodes if x.op != "placeholder"]) == 1


def is_pointwise(target: object) -> bool:
    """Whether each element that an op gives follows from one element of each operand."""
    known = isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags
    return known or target is cast


def summed_in_place(start: fx.Node) -> bool:
    """Whether the message of a collective becomes what it gives."""
    kinds = {collective.kind for _, collective in collectives_of(start)}
    return kinds == {Kind.ALL_REDUCE} and (is_bucket(start) or reduces_in_place(start))


def bytes_given(start: fx.Node, mesh: Mesh) -> int:
    """What a collective gives on one device, the one with the largest shards."""
    at = next(iter(mesh.coords()))
    shapes = [(x, collective.dst.local_shape(at)) for x, collective in collectives_of(start)]
    return sum(math.prod(shape) * _dtype(x).itemsize for x, shape in shapes)


def _dtype(node: fx.Node) -> torch.dtype:
    """The type of a value; an op without a record has that of what it reads."""
    value = info(node).value
    return value.dtype if isinstance(value, torch.Tensor) else _dtype(node.all_input_nodes[0])
