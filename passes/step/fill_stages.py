"""The stages of what the passes have put between the ops of stages: changes of layout above all.

A change of layout between two stages is made on the side where less is sent from one to the other:
before it by the stage that makes the value, if it leaves less, and else by the stage that reads it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from shardlang.cost.held import local_bytes
from shardlang.ir.graph import is_reshard
from shardlang.ir.node import info, layout_of, set_info, tensor_of


def fill_stages(graph: fx.Graph) -> None:
    """Give every op without a stage that of what it reads, or else that of what reads it.

    Leaves other than parameters have none: they are at hand in every stage. In a model that is not
    split into stages nothing has one.
    """
    if all(info(node).stage is None for node in graph.nodes):
        return
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    for node in reversed(nodes):
        if info(node).stage is None and _is_for_readers(node):
            _from_readers(node, None)
    for node in nodes:
        before = [s for x in node.all_input_nodes if (s := info(x).stage) is not None]
        if info(node).stage is None and before:
            _set(node, max(before))
    for node in reversed(nodes):
        if info(node).stage is None:
            _from_readers(node, 0)


def _is_for_readers(node: fx.Node) -> bool:
    """Whether a change of layout of one value leaves as much as it takes, or more."""
    if not is_reshard(node) or not isinstance(node.args[0], fx.Node):
        return False
    return _bytes(node) >= _bytes(node.args[0])


def _bytes(node: fx.Node) -> int:
    return local_bytes(layout_of(node), tensor_of(node).dtype)


def _from_readers(node: fx.Node, otherwise: int | None) -> None:
    after = [s for x in node.users if (s := info(x).stage) is not None]
    _set(node, min(after, default=otherwise))


def _set(node: fx.Node, stage: int | None) -> None:
    set_info(node, replace(info(node), stage=stage))
