"""Graphs as text and back, with the rules and functions that the text leaves out."""

from __future__ import annotations

import importlib

from torch.fx.node import Target

from shardlang.ir.graph import ShardGraph
from shardlang.ir.parse import parse_graph
from shardlang.ir.parse_types import GraphTextError
from shardlang.ir.text import Stage, stage_of
from shardlang.passes.propagate.bind_rules import rule_of
from shardlang.passes.propagate.join_dims import join_dims

__all__ = ["GraphTextError", "read_graph"]


def read_graph(text: str) -> ShardGraph:
    """The graph of a text.

    Raises:
        GraphTextError: the text is no graph, or says two things that do not agree.
        ShardError: an op has no rule, or its rule does not fit the call.
    """
    graph = parse_graph(text, rule_of, function)
    if stage_of(graph) is Stage.SPLIT:
        graph.joined = join_dims(graph.graph)
    return graph


def function(name: str) -> Target | None:
    """The function of ours that a text calls `rules.local:max_over`; None if there is none."""
    module, _, own = name.partition(":")
    try:
        found = getattr(importlib.import_module(f"shardlang.{module}"), own, None)
    except ImportError:
        return None
    return found if callable(found) else None
