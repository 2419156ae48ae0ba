"""A graph from its text: `parse_graph(graph_text(graph))` equals the graph.

The text does not say what follows from a call and its type: rules are bound anew, and fake values
made from dtypes and global shapes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lark import Lark, UnexpectedInput
from lark.exceptions import VisitError

from shardlang.ir.graph import ShardGraph
from shardlang.ir.parse_calls import Functions
from shardlang.ir.parse_nodes import GraphReader, Rules
from shardlang.ir.parse_types import GraphTextError


@cache
def _lark() -> Lark:
    grammar = Path(__file__).with_name("graph.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", maybe_placeholders=True)


def parse_graph(text: str, rules: Rules, functions: Functions) -> ShardGraph:
    """Parse the text of a graph.

    Args:
        rules: gives the rule of a leaf or a call.
        functions: finds a function by its name in the text, `rules.local:max_over`.

    Raises:
        GraphTextError: the text is no graph, or says two things that do not agree.
        ValueError: a rule does not fit a call.
    """
    reader = GraphReader(rules, functions)
    try:
        reader.transform(_lark().parse(text))
    except UnexpectedInput as fault:
        lines = text.splitlines()
        shown = lines[fault.line - 1].strip() if 0 < fault.line <= len(lines) else "the end"
        raise GraphTextError(f"cannot be read: {shown}", fault.line) from None
    except VisitError as fault:
        raise fault.orig_exc from None
    return reader.graph
