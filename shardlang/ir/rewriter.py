"""The one way to make, replace and remove nodes: every node gets its record."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument, Target

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import FakeTensorMode, detect_fake_mode, tree_leaves
from shardlang.ir.node import NodeInfo, Value, info, set_info


def origin_of(node: fx.Node) -> NodeInfo:
    """A record that says of a node no more than where in the model it comes from."""
    known = info(node)
    return NodeInfo(
        module=known.module, source=known.source, no_grad=known.no_grad, stage=known.stage
    )


def copy_graph(source: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy whose nodes keep their names and records, and every node's copy."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in source.nodes:
        env[node] = graph.node_copy(node, lambda n: env[n])
        set_info(env[node], info(node))
        assert env[node].name == node.name, f"{node.name} was renamed to {env[node].name}"
    return graph, env


def _for_fx(args: Args, kwargs: Kwargs | None) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
    """Arguments under the type of fx, which takes more: values that depend on the device too."""
    given: Any = (args, dict(kwargs or {}))
    found: tuple[tuple[Argument, ...], dict[str, Argument]] = given
    return found


class Rewriter:
    """Edits one graph, and carries the records of its nodes along."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    @cached_property
    def fake_mode(self) -> FakeTensorMode:
        """The fake mode of the graph's values, or a new one if it has none."""
        mode = detect_fake_mode(tree_leaves([info(node).value for node in self.graph.nodes]))
        return mode if isinstance(mode, FakeTensorMode) else FakeTensorMode()

    def add(
        self,
        target: Target,
        args: Args,
        kwargs: Kwargs | None = None,
        *,
        record: NodeInfo,
        before: fx.Node | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Add a call before a node, or at the end, with its record."""
        given, named = _for_fx(args, kwargs)
        with self.graph.inserting_before(before) if before is not None else nullcontext():
            made = self.graph.create_node("call_function", target, given, named, name)
        set_info(made, record)
        return made

    def call(self, target: Target, *args: object, like: fx.Node, **kwargs: object) -> fx.Node:
        """Add a call before `like`, with the origin of `like`; its value is inferred."""
        value = self.run(target, args, kwargs)
        record = replace(origin_of(like), value=value)
        return self.add(target, args, kwargs, record=record, before=like)

    def become(
        self,
        node: fx.Node,
        target: Target,
        args: Args,
        kwargs: Kwargs | None = None,
    ) -> None:
        """Let a node be another call; it keeps its name, its record and its users."""
        node.target = target
        node.args, node.kwargs = _for_fx(args, kwargs)

    def infer(self, node: fx.Node) -> None:
        """Set the value of a changed call from its operands' values."""
        set_info(node, replace(info(node), value=self.run(node.target, node.args, node.kwargs)))

    def run(self, target: Target, args: Args, kwargs: Kwargs) -> Value:
        """The fake result of a call whose operands may be nodes."""
        assert callable(target), "only calls of functions have values"
        values, named = fx.map_arg(_for_fx(args, kwargs), lambda n: info(n).value)
        with self.fake_mode, torch.no_grad():
            made: Value = target(*values, **named)
        return made

    def redirect(
        self, node: fx.Node, by: fx.Node, reads: Callable[[fx.Node], bool] | None = None
    ) -> None:
        """Let the users of `node` (those that `reads` chooses) read `by`; `by` itself stays."""
        node.replace_all_uses_with(
            by, delete_user_cb=lambda user: user is not by and (reads is None or reads(user))
        )

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Let all users of `node` use `by`, and remove `node`."""
        node.replace_all_uses_with(by)
        self.remove(node)

    def replace_items(self, node: fx.Node, by: tuple[fx.Node, ...]) -> None:
        """Let the readers of each result of `node` use one of `by`, and remove `node`."""
        for item in list(node.users):
            index = item.args[1]
            assert item.target is operator.getitem and isinstance(index, int), (
                f"{item} picks no result of {node}"
            )
            self.replace(item, by[index])
        self.remove(node)

    def remove(self, node: fx.Node) -> None:
        """Remove a node that nothing uses."""
        self.graph.erase_node(node)
