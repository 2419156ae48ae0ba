"""Whether an expression in a source file is the condition of a check, and when that passes."""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator
from typing import NamedTuple

_REPORTS = ("warn", "warning", "warning_once", "print", "info", "debug", "error")
_CALLS = ("_check", "_assert")


class Place(NamedTuple):
    """Where an expression stands in its file: lines from 1, columns in bytes from 0."""

    line: int | None
    end_line: int | None
    column: int | None
    end_column: int | None


@functools.cache
def passing_value(path: str, place: Place) -> bool | None:
    """The truth value of the expression with which its check passes; None if it is in no check.

    A check is an `assert`, a call of `torch._check...` or `torch._assert...`, or an `if` one of
    whose branches raises, or only warns. One whose failure the code itself catches is none.
    """
    if None in place:
        return None
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except SyntaxError:
        return None
    chain = list(_around(tree, place))
    if any(isinstance(node, ast.Try) and node.handlers for node in chain):
        return None
    for i, (outer, inner) in enumerate(zip(chain, [*chain[1:], None], strict=True)):
        wanted = _wanted(outer, inner)
        if wanted is not None:
            return _through(chain[i + 1 :] or [getattr(outer, "test", outer)], wanted)
    return None


def _around(tree: ast.AST, place: Place) -> Iterator[ast.AST]:
    """The nodes that contain a place, outermost first."""
    node: ast.AST | None = tree
    while node is not None:
        yield node
        node = next((n for n in ast.iter_child_nodes(node) if _contains(n, place)), None)


def _contains(node: ast.AST, place: Place) -> bool:
    if not isinstance(node, (ast.stmt, ast.expr, ast.comprehension)):
        return False
    if isinstance(node, ast.comprehension):
        return _contains(node.iter, place) or any(_contains(n, place) for n in node.ifs)
    start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    return start <= place[::2] and place[1::2] <= end


def _wanted(outer: ast.AST, inner: ast.AST | None) -> bool | None:
    """The value that a part of a node must have for a check to pass; None if it is not a check.

    The jump of a statement may stand at all of it, and then there is no part.
    """
    if isinstance(outer, ast.Call) and inner is not None and _name(outer).startswith(_CALLS):
        return True
    if not isinstance(outer, (ast.Assert, ast.If)) or inner not in (None, outer.test):
        return None
    if isinstance(outer, ast.Assert):
        return True
    if isinstance(outer.body[-1], ast.Raise):
        return False
    if outer.orelse and isinstance(outer.orelse[-1], ast.Raise):
        return True
    return False if not outer.orelse and all(map(_reports, outer.body)) else None


def _through(chain: list[ast.AST], wanted: bool) -> bool | None:
    """The value that the innermost of nested conditions must have for the outermost to be so."""
    for node in chain[:-1]:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            wanted = not wanted
        elif isinstance(node, (ast.IfExp, ast.Lambda, ast.comprehension)):
            return None
    values = set(_leaves(chain[-1], wanted))
    return values.pop() if len(values) == 1 else None


def _leaves(node: ast.AST, wanted: bool) -> Iterator[bool]:
    """What the operands of `not`, `and` and `or` must be."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield from _leaves(node.operand, not wanted)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _leaves(value, wanted)
    else:
        yield wanted


def _reports(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and _name(call) in _REPORTS


def _name(call: ast.Call) -> str:
    """The last part of a called function's name."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))
