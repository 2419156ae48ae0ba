"""A graph from its text: `parse_graph(graph_text(graph))` equals the graph.

The text does not say what follows from a call and its type: rules are bound anew, and fake values
made from dtypes and global shapes. It is read line by line, each by the rule of the grammar that
fits its place, so that reading takes time and memory in proportion to the text.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.exceptions import VisitError

from shardlang.ir.graph import ShardGraph
from shardlang.ir.hushed import hushed
from shardlang.ir.parse_calls import Functions
from shardlang.ir.parse_clauses import place_of
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.parse_nodes import GraphReader, Rules

FORMS = {
    "stage": "begin with `graph`, `graph split`, `graph labelled` or `program`",
    "mesh": "name the axes of the mesh and their sizes: `mesh dp = 2 data, tp = 3`",
    "line": 'write `y = linear(x, w) : f32[6@dp, 10@tp]`, and last `return output "y" y`',
    "found": "behind the results stand only `refused`, `check`, `order`, `layout`, `ways`",
}
"""The rules that lines are read by, and what such a line is."""

WORDS = {
    "DEF": "a name and ` = `",
    "KIND": "`param`, `buffer`, `input`, `constant`, `output` or `mutation`, and a quoted name",
    "NAME": "a name",
    "INT": "a number",
    "STRING": "text in double quotes",
    "DTYPE": "a type such as `f32[6@dp, 5]`",
    "$END": "the end of the line",
}
"""What the grammar's terminals are called, beside those that are words themselves."""

DEEPEST = 16
"""Brackets nest no deeper: an op takes lists of lists at most."""

_FEW = 4
_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[\[({]|[\])}]')


@cache
def _lark() -> Lark:
    grammar = Path(__file__).with_name("graph.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        parser="lalr",
        lexer="contextual",
        start=list(FORMS),
        maybe_placeholders=True,
        propagate_positions=True,
    )


def parse_graph(text: str, rules: Rules, functions: Functions) -> ShardGraph:
    """Parse the text of a graph.

    Args:
        rules: gives the rule of a leaf or a call.
        functions: finds a function by its name in the text, `rules.local:max_over`.

    Raises:
        GraphTextError: the text is no graph, or says two things that do not agree.
    """
    reader = GraphReader(rules, functions)
    lines = text.split("\n")
    with hushed():
        for number, line in enumerate(lines, 1):
            if line.split("#")[0].strip():
                read_line(reader, line, number)
    if not reader.ended:
        form = FORMS[reader.awaits]
        fault = GraphTextError("the text ends before its results", form)
        raise fault.on(len(lines), lines[-1], Place(len(lines[-1]) + 1, 1))
    return reader.graph


def read_line(reader: GraphReader, line: str, number: int) -> None:
    """Read one line.

    Raises:
        GraphTextError: with the line.
    """
    start = "found" if reader.ended else reader.awaits
    try:
        check_nesting(line)
        reader.transform(_lark().parse(line, start=start))
    except UnexpectedInput as fault:
        raise unread(fault, line, start).on(number, line, Place(1, 1)) from None
    except VisitError as fault:
        if not isinstance(fault.orig_exc, GraphTextError):
            raise fault.orig_exc from None
        at = fault.obj
        place = Place.of(at) if isinstance(at, Token) else place_of(at.meta)
        raise fault.orig_exc.on(number, line, place) from None
    except GraphTextError as fault:
        raise fault.on(number, line, Place(1, 1)) from None


def check_nesting(line: str) -> None:
    """Refuse brackets that nest deeper than any call's."""
    if sum(map(line.count, "[({")) <= DEEPEST:
        return
    depth = 0
    for found in _BRACKETS.finditer(line):
        depth += 1 if found[0] in "[({" else -1 if found[0] in "])}" else 0
        if depth > DEEPEST:
            wrong = f"brackets nest more than {DEEPEST} deep"
            raise GraphTextError(wrong, "write flat lists", Place(found.start() + 1, 1))


def unread(fault: UnexpectedInput, line: str, start: str) -> GraphTextError:
    """The error for a line that the grammar does not have."""
    column, allowed = max(1, fault.column), set[str]()
    if isinstance(fault, UnexpectedToken):
        allowed = set(fault.accepts or fault.expected)
    elif isinstance(fault, UnexpectedCharacters):
        allowed = set(fault.allowed or ())
    found = fault.token if isinstance(fault, UnexpectedToken) else ""
    if isinstance(fault, UnexpectedToken) and fault.token.type == "$END":
        column, said = len(line.rstrip()) + 1, "the line ends too early"
    else:
        said = f"`{found or line[column - 1 : column]}` cannot stand here"
    words = sorted({word_of(name) for name in allowed})
    known = f"write {' or '.join(words)}" if 0 < len(words) <= _FEW else FORMS[start]
    return GraphTextError(said, known, Place(column, max(1, len(found))))


def word_of(terminal: str) -> str:
    """A terminal of the grammar, as it is written."""
    if terminal in WORDS:
        return WORDS[terminal]
    pattern = _lark().get_terminal(terminal).pattern
    return f"`{pattern.value}`" if pattern.type == "str" else f"`{terminal.lower()}`"
