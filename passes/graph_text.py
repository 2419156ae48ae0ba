"""Graphs as text and back, with the rules and functions that the text leaves out."""

from __future__ import annotations

import sys
from types import FunctionType

from torch.fx.node import Target

from shardlang.ir.graph import ShardGraph
from shardlang.ir.parse import parse_graph
from shardlang.ir.parse_error import GraphTextError
from shardlang.ir.spelling import target_name
from shardlang.ir.text import Stage, stage_of
from shardlang.passes.propagate.bind_rules import rule_of
from shardlang.passes.propagate.join_dims import join_dims

__all__ = ["GraphTextError", "read_graph"]


def read_graph(text: str) -> ShardGraph:
    """The graph of a text.

    Raises:
        GraphTextError: the text is no graph, or says two things that do not agree.
    """
    graph = parse_graph(text, rule_of, function)
    if stage_of(graph) is Stage.SPLIT:
        graph.joined = join_dims(graph.graph)
    return graph


def function(name: str) -> Target | None:
    """The function of ours that a text calls `rules.local:max_over`; None if there is none."""
    place, _, own = name.partition(":")
    module = sys.modules.get(f"shardlang.{place}")
    found = getattr(module, own, None)
    ours = isinstance(found, FunctionType) and target_name(found) == name
    return found if ours else None
