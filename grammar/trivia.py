"""Comments and blank lines: which node keeps which.

A comment after a node stays behind it; a comment on a line of its own stays above the
next node, or at the foot of its block; a comment inside a statement moves above it. A
blank line between two lines is kept, several become one.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from shardlang.grammar import tree as t
from shardlang.grammar.scan import Source, Token

_Place: TypeAlias = "tuple[int, int]"
_ItemT = TypeVar("_ItemT", bound=t.Item)


@dataclass(frozen=True, slots=True)
class _Comment:
    text: str
    line: int
    column: int

    @property
    def place(self) -> tuple[int, int]:
        return (self.line, self.column)


@dataclass(slots=True)
class _Around:
    """The comments of one node, before they are told apart."""

    above: list[_Comment] = field(default_factory=list)
    inside: list[_Comment] = field(default_factory=list)
    behind: str = ""


def attach(tree: t.Tree, source: Source, tokens: list[Token]) -> t.Tree:
    """The tree with its trivia."""
    comments = [
        _Comment(token.text.rstrip(), *source.place(token.start))
        for token in tokens
        if token.kind == "comment"
    ]
    braces = [source.place(token.start) for token in tokens if token.text == "{"]
    statements, foot = _attach_region(tree.statements, comments, braces)
    return replace(tree, statements=statements, foot=foot)


def _attach_region(
    nodes: tuple[_ItemT, ...], comments: list[_Comment], braces: list[_Place]
) -> tuple[tuple[_ItemT, ...], tuple[str, ...]]:
    """Share the comments of a block, or of the file, among its nodes; the rest is its foot."""
    around, rest = _share(nodes, comments)
    line: int | None = None
    done: list[_ItemT] = []
    for node, mine in zip(nodes, around, strict=True):
        before = _with_blanks(mine.above, line, node.span.line)
        done.append(_with_trivia(node, before, mine, braces))
        line = node.span.end_line
    return tuple(done), tuple(_with_blanks(rest, line, None))


def _share(
    nodes: tuple[_ItemT, ...], comments: list[_Comment]
) -> tuple[list[_Around], list[_Comment]]:
    around = [_Around() for _ in nodes]
    rest: list[_Comment] = []
    index = 0
    for comment in comments:
        while index < len(nodes) and nodes[index].span.end <= comment.place:
            index += 1
        inside = index < len(nodes) and nodes[index].span.start < comment.place
        if inside:
            around[index].inside.append(comment)
        elif index and nodes[index - 1].span.end_line == comment.line:
            around[index - 1].behind = comment.text
        elif index == len(nodes):
            rest.append(comment)
        else:
            around[index].above.append(comment)
    return around, rest


def _with_blanks(comments: list[_Comment], line: int | None, end: int | None) -> list[str]:
    """Comment lines with an empty text for each gap, from line `line` up to line `end`."""
    lines: list[str] = []
    for comment in comments:
        if line is not None and comment.line - line > 1:
            lines.append("")
        lines.append(comment.text)
        line = comment.line
    if line is not None and end is not None and end - line > 1:
        lines.append("")
    return lines


def _with_trivia(node: _ItemT, before: list[str], mine: _Around, braces: list[_Place]) -> _ItemT:
    if isinstance(node, t.Mesh):
        entries, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=entries, trivia=trivia)
    if isinstance(node, t.Dims):
        names, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=names, trivia=trivia)
    if isinstance(node, t.Pipeline):
        stages, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=stages, trivia=trivia)
    if isinstance(node, t.Stages):
        listed, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=listed, trivia=trivia)
    if isinstance(node, t.Precision):
        types, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=types, trivia=trivia)
    if isinstance(node, t.Schedule):
        sizes, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=sizes, trivia=trivia)
    if isinstance(node, t.Cluster):
        peaks, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=peaks, trivia=trivia)
    if isinstance(node, t.Expect):
        lines, trivia = _within(node, node.items, before, mine, braces)
        return replace(node, items=lines, trivia=trivia)
    hoisted = tuple(comment.text for comment in mine.inside)
    return replace(node, trivia=t.Trivia((*before, *hoisted), mine.behind))


def _within(
    node: t.Block,
    items: tuple[_ItemT, ...],
    before: list[str],
    mine: _Around,
    braces: list[_Place],
) -> tuple[tuple[_ItemT, ...], t.Trivia]:
    """The items of a block with their trivia, and the trivia of the block."""
    opening = braces[bisect_right(braces, node.span.start)]
    moved = [comment.text for comment in mine.inside if comment.place < opening]
    head, inside = _split_head(node, opening, mine.inside[len(moved) :])
    done, foot = _attach_region(items, inside, braces)
    return done, t.Trivia((*before, *moved), mine.behind, head, foot)


def _split_head(
    node: t.Block, opening: _Place, comments: list[_Comment]
) -> tuple[str, list[_Comment]]:
    """Tell the comment after `{` from those of the lines."""
    first = node.items[0].span.start if node.items else node.span.end
    if comments and comments[0].line == opening[0] and comments[0].place < first:
        return comments[0].text, comments[1:]
    return "", comments
