"""Lark's parse tree to the frozen nodes of `shardlang.grammar.tree`: one method per rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from lark import Token
from lark import Tree as LarkTree

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import NOWHERE, Span
from shardlang.grammar.scan import Source
from shardlang.grammar.scan import Token as ScanToken
from shardlang.grammar.trivia import attach

Rule: TypeAlias = "LarkTree[Token]"


def build_tree(parsed: Rule, source: Source, tokens: list[ScanToken]) -> t.Tree:
    """The syntax tree of a parsed file, comments included."""
    builder = _Builder(source.file)
    statements = [cast(t.Statement, builder.node(child)) for child in parsed.children]
    return attach(t.Tree(tuple(statements), file=source.file), source, tokens)


class _Builder:
    def __init__(self, file: str) -> None:
        self.file = file

    def node(self, rule: Any) -> Any:
        """The node of a rule, by the method named as the rule is."""
        return getattr(self, f"_{rule.data}")(rule.children, self._span(rule))

    def nodes(self, rules: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(self.node(rule) for rule in rules if rule is not None)

    def _span(self, rule: Rule) -> Span:
        meta = rule.meta
        if meta.empty:
            return NOWHERE
        return Span(self.file, meta.line, meta.column, meta.end_line, meta.end_column)

    def _token_span(self, token: Token) -> Span:
        place = (token.line, token.column, token.end_line, token.end_column)
        line, column, end_line, end_column = (number or 1 for number in place)
        return Span(self.file, line, column, end_line, end_column)

    def ident(self, token: Token) -> t.Ident:
        return t.Ident(str(token), span=self._token_span(token))

    def text(self, token: Token) -> t.Text:
        return t.Text(str(token)[1:-1], span=self._token_span(token))

    def literal(self, token: Token) -> t.Scalar:
        span = self._token_span(token)
        if token.type == "INT":
            return t.Number(int(token), str(token), span=span)
        if token.type == "FLOAT":
            return t.Number(float(token), str(token), span=span)
        if token.type == "SIZE":
            return t.Size(int(token[:-3]), str(token[-3:]), span=span)
        return self.text(token) if token.type == "STRING" else self.ident(token)

    def _scalar(self, children: list[Any], _span: Span) -> t.Scalar:
        return self.literal(children[0])

    _size = _axis_size = _scalar

    def _ref(self, children: list[Any], _span: Span) -> t.Ref:
        return cast("t.Ref", self.literal(children[0]))

    def _refs(self, children: list[Any], _span: Span) -> tuple[t.Ref, ...]:
        return self.nodes(children)

    def _names(self, children: list[Any], _span: Span) -> tuple[t.Ident, ...]:
        return tuple(self.ident(token) for token in children if token is not None)

    def _product(self, children: list[Any], span: Span) -> t.Product:
        return t.Product(tuple(self.ident(token) for token in children), span=span)

    _dims_product = _product

    def _list(self, children: list[Any], span: Span) -> t.ListValue:
        return t.ListValue(self.nodes(children), span=span)

    def _named(self, children: list[Any], span: Span) -> t.Argument:
        return t.Argument(self.ident(children[0]), self.node(children[1]), span=span)

    def _positional(self, children: list[Any], span: Span) -> t.Argument:
        return t.Argument(None, self.node(children[0]), span=span)

    def _arguments(self, children: list[Any], _span: Span) -> tuple[t.Argument, ...]:
        return self.nodes(children)

    def maybe(self, rule: Any, otherwise: Any = None) -> Any:
        return otherwise if rule is None else self.node(rule)

    def maybe_text(self, token: Token | None) -> t.Text | None:
        return None if token is None else self.text(token)

    def _use(self, children: list[Any], span: Span) -> t.Use:
        return t.Use(self.text(children[0]), span=span)

    def _let(self, children: list[Any], span: Span) -> t.Let:
        return t.Let(self.ident(children[0]), self.node(children[1]), span=span)

    def _mesh(self, children: list[Any], span: Span) -> t.Mesh:
        return t.Mesh(self.nodes(children), span=span)

    def _axis(self, children: list[Any], span: Span) -> t.AxisDecl:
        name, size, link, data = children
        linked = None if link is None else self.ident(link)
        return t.AxisDecl(self.ident(name), self.node(size), linked, data is not None, span=span)

    def _dims(self, children: list[Any], span: Span) -> t.Dims:
        return t.Dims(self.nodes(children), span=span)

    def _dims_entry(self, children: list[Any], span: Span) -> t.DimsEntry:
        product = self.node(children[1]) if len(children) > 1 else None
        return t.DimsEntry(self.node(children[0]), product, span=span)

    def _model(self, children: list[Any], span: Span) -> t.Model:
        return t.Model(self.node(children[0]), self.maybe(children[1], ()), span=span)

    def _input(self, children: list[Any], span: Span) -> t.Input:
        refs, dtype, shape, below, layout = children
        return t.Input(
            self.node(refs),
            self.ident(dtype),
            self.nodes(shape.children),
            None if below is None else self.node(below.children[0]),
            self.node(layout),
            span=span,
        )

    def _output(self, children: list[Any], span: Span) -> t.Output:
        return t.Output(self.node(children[0]), self.node(children[1]), span=span)

    def _loss(self, children: list[Any], span: Span) -> t.Loss:
        return t.Loss(self.node(children[0]), span=span)

    def _param(self, children: list[Any], span: Span) -> t.Param:
        return t.Param(self.text(children[0]), self.node(children[1]), span=span)

    def _buffer(self, children: list[Any], span: Span) -> t.Buffer:
        return t.Buffer(self.text(children[0]), self.node(children[1]), span=span)

    def _store(self, children: list[Any], span: Span) -> t.Store:
        pattern, axes, regather = children
        return t.Store(self.text(pattern), self.node(axes), regather is not None, span=span)

    def _value(self, children: list[Any], span: Span) -> t.ValueStatement:
        pattern, selector, layout = children
        chosen = self.maybe(selector)
        return t.ValueStatement(self.text(pattern), chosen, self.node(layout), span=span)

    def _selector(self, children: list[Any], span: Span) -> t.Selector:
        return t.Selector(cast(Any, str(children[0])), tuple(map(str, children[1:])), span=span)

    def _optimizer(self, children: list[Any], span: Span) -> t.Optimizer:
        return t.Optimizer(self.ident(children[0]), self.maybe(children[1], ()), span=span)

    def _random(self, children: list[Any], span: Span) -> t.Random:
        return t.Random(cast(Any, str(children[0])), span=span)

    def _expect(self, children: list[Any], span: Span) -> t.Expect:
        return t.Expect(self.nodes(children), span=span)

    def _forbid(self, children: list[Any], span: Span) -> t.Forbid:
        return t.Forbid(self.node(children[0]), span=span)

    def _count(self, children: list[Any], span: Span) -> t.Count:
        measure, select, comparison, bound = children
        kind = cast(Any, "count" if measure is None else "bytes")
        return t.Count(kind, self.node(select), str(comparison), self.node(bound), span=span)

    def _layout_is(self, children: list[Any], span: Span) -> t.LayoutIs:
        return t.LayoutIs(self.text(children[0]), self.node(children[1]), span=span)

    def _local_is(self, children: list[Any], span: Span) -> t.LocalIs:
        return t.LocalIs(self.text(children[0]), self.nodes(children[1:]), span=span)

    def _local_bytes(self, children: list[Any], span: Span) -> t.LocalBytes:
        _bytes, name, comparison, bound = children
        return t.LocalBytes(self.text(name), str(comparison), self.node(bound), span=span)

    def _select(self, children: list[Any], span: Span) -> t.Select:
        phase, op, axes, pattern = children
        return t.Select(
            None if phase is None else str(phase),
            str(op),
            self.maybe(axes),
            self.maybe_text(pattern),
            span=span,
        )

    def _layout(self, children: list[Any], span: Span) -> t.Layout:
        present = [child for child in children if child is not None]
        partial = tuple(self.ident(c.children[0]) for c in present if c.data == "partial")
        entries = self.nodes([child for child in present if child.data != "partial"])
        return t.Layout(entries, partial, span=span)

    def _whole(self, _children: list[Any], span: Span) -> t.WholeEntry:
        return t.WholeEntry(span=span)

    def _open(self, _children: list[Any], span: Span) -> t.OpenEntry:
        return t.OpenEntry(span=span)

    def _rest(self, _children: list[Any], span: Span) -> t.RestEntry:
        return t.RestEntry(span=span)

    def _sharded(self, children: list[Any], span: Span) -> t.AxesEntry:
        product, blocks = children
        sizes = () if blocks is None else self.nodes(blocks.children)
        return t.AxesEntry(self.node(product), sizes, span=span)
