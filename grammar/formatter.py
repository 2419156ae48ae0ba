"""Tree to canonical text: one line per fact, blocks opened, layouts aligned in runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any, TypeAlias, TypeVar

from shardlang.grammar import tree as t

_INDENT = "  "
_WIDEST_ALIGNED = 64

_LaidOut: TypeAlias = t.Input | t.Output | t.Param | t.Buffer | t.ValueStatement
_LAID_OUT = (t.Input, t.Output, t.Param, t.Buffer, t.ValueStatement)


def format_tree(tree: t.Tree) -> str:
    """The canonical text of a tree; parsing it gives an equal tree."""
    lines = [*_lines(tree.statements, ""), *tree.foot]
    return "".join(line + "\n" for line in lines)


def format_node(node: t.Node) -> str:
    """The canonical text of one node, without its comments: for messages."""
    return "\n".join(_block(_bare(node), "")) if isinstance(node, _BLOCKS) else _text(node)


_Item = TypeVar("_Item", bound=t.Item)


def _bare(item: _Item) -> _Item:
    """An item without the comments at it and in it."""
    changes: dict[str, Any] = {"trivia": t.Trivia()}
    if isinstance(item, _BLOCKS):
        changes["items"] = tuple(_bare(one) for one in item.items)
    return replace(item, **changes)


def _lines(items: Sequence[t.Item], indent: str) -> list[str]:
    widths = _alignment(items)
    lines: list[str] = []
    for item, width in zip(items, widths, strict=True):
        lines += _indented(item.trivia.before, indent)
        if isinstance(item, _BLOCKS):
            lines += _block(item, indent)
        elif isinstance(item, _LAID_OUT):
            lines.append(f"{indent}{_head(item).ljust(width)} {_layout(item.layout)}")
        else:
            lines.append(indent + _text(item))
        lines[-1] += _behind(item.trivia.after)
    return lines


def _block(block: t.Block, indent: str) -> list[str]:
    opening = f"{indent}{_opening(block)} {{"
    trivia = block.trivia
    if not block.items and not trivia.head and not trivia.foot:
        return [opening + "}"]
    return [
        opening + _behind(trivia.head),
        *_lines(block.items, indent + _INDENT),
        *_indented(trivia.foot, indent + _INDENT),
        indent + "}",
    ]


def _indented(comments: Iterable[str], indent: str) -> list[str]:
    return [indent + comment if comment else "" for comment in comments]


def _behind(comment: str) -> str:
    return f"  {comment}" if comment else ""


def _alignment(items: Sequence[t.Item]) -> list[int]:
    """The width of each item's head: the same for statements of a kind without a gap between."""
    widths: list[int] = [0] * len(items)
    run: list[int] = []
    for index, item in enumerate(items):
        if run and (type(item) is not type(items[run[0]]) or item.trivia.before):
            _align(items, run, widths)
            run = []
        run.append(index)
    _align(items, run, widths)
    return widths


def _align(items: Sequence[t.Item], run: list[int], widths: list[int]) -> None:
    heads = [len(_head(item)) for i in run if isinstance(item := items[i], _LAID_OUT)]
    width = max((head for head in heads if head <= _WIDEST_ALIGNED), default=0)
    for index in run:
        widths[index] = width


def _head(item: _LaidOut) -> str:
    """A statement up to its layout."""
    if isinstance(item, t.Input):
        below = "" if item.below is None else f" below {_text(item.below)}"
        names = _commas(item.refs)
        return f"input {names} : {item.dtype.text}[{_commas(item.shape)}]{below}"
    if isinstance(item, t.Output):
        return f"output {_commas(item.refs)}"
    if isinstance(item, t.ValueStatement):
        selector = "" if item.selector is None else _text(item.selector)
        return f"value {_text(item.pattern)}{selector}"
    return f"{'param' if isinstance(item, t.Param) else 'buffer'} {_text(item.pattern)}"


def _layout(layout: t.Layout) -> str:
    partial = "".join(f" +{_text(axis)}" for axis in layout.partial)
    return f"[{_commas(layout.entries)}]{partial}"


def _commas(nodes: Iterable[t.Node]) -> str:
    return ", ".join(_text(node) for node in nodes)


def _call(name: str, arguments: Sequence[t.Argument]) -> str:
    return f"{name}({_commas(arguments)})" if arguments else name


def _opening(block: t.Block) -> str:
    if isinstance(block, t.Pipeline):
        return f"pipeline {block.axis.text}"
    return "split" if isinstance(block, t.Stages) else type(block).__name__.lower()


@singledispatch
def _text(node: object) -> str:
    """The text of a node that takes one line."""
    raise TypeError(f"no text for {type(node).__name__}")


@_text.register
def _(node: t.Ident) -> str:
    return node.text


@_text.register
def _(node: t.Text) -> str:
    return f'"{node.text}"'


@_text.register
def _(node: t.Number) -> str:
    return node.text or repr(node.value)


@_text.register
def _(node: t.Size) -> str:
    return f"{node.count}{node.unit}"


@_text.register
def _(node: t.ListValue) -> str:
    return f"[{_commas(node.items)}]"


@_text.register
def _(node: t.Argument) -> str:
    value = _text(node.value)
    return value if node.name is None else f"{node.name.text} = {value}"


@_text.register
def _(node: t.Product) -> str:
    return "*".join(map(_text, node.names))


@_text.register
def _(node: t.Part) -> str:
    after = f"/{node.after}" if node.after != 1 or node.shards is None else ""
    return node.name.text + after + ("" if node.shards is None else f":{node.shards}")


@_text.register
def _(node: t.AxesEntry) -> str:
    return _text(node.product) + (f"({_commas(node.blocks)})" if node.blocks else "")


@_text.register
def _(node: t.WholeEntry) -> str:
    return "_"


@_text.register
def _(node: t.OpenEntry) -> str:
    return "?"


@_text.register
def _(node: t.RestEntry) -> str:
    return "..."


@_text.register
def _(node: t.Layout) -> str:
    return _layout(node)


@_text.register
def _(node: t.Selector) -> str:
    return "." + ".".join((node.side, *node.path))


@_text.register(t.Input)
@_text.register(t.Output)
@_text.register(t.Param)
@_text.register(t.Buffer)
@_text.register(t.ValueStatement)
def _(node: _LaidOut) -> str:
    return f"{_head(node)} {_layout(node.layout)}"


@_text.register
def _(node: t.Use) -> str:
    return f"use {_text(node.path)}"


@_text.register
def _(node: t.Let) -> str:
    return f"let {node.name.text} = {_text(node.value)}"


@_text.register
def _(node: t.AxisDecl) -> str:
    link = "" if node.link is None else f" over {node.link.text}"
    return f"{node.name.text} = {_text(node.size)}{link}{f' as {node.role}' if node.role else ''}"


@_text.register
def _(node: t.DimsEntry) -> str:
    product = "_" if node.product is None else _text(node.product)
    return f"{_commas(node.names)} = {product}"


@_text.register
def _(node: t.Model) -> str:
    return f"model {_call(_text(node.source), node.arguments)}"


@_text.register
def _(node: t.Loss) -> str:
    return f"loss {_text(node.ref)}"


@_text.register
def _(node: t.Store) -> str:
    regather = " regather" if node.regather else ""
    what = f"{node.what} " if node.what else ""
    return f"store {what}{_text(node.pattern)} over {_text(node.axes)}{regather}"


@_text.register
def _(node: t.Data) -> str:
    cut = "" if node.cut is None else f" {node.cut}"
    arguments = f" ({_commas(node.arguments)})" if node.arguments else ""
    return f"data {_text(node.path)}{cut}{arguments}"


@_text.register
def _(node: t.Optimizer) -> str:
    return f"optimizer {_call(node.name.text, node.arguments)}"


@_text.register
def _(node: t.Group) -> str:
    return f"group {_commas(node.patterns)} ({_commas(node.arguments)})"


@_text.register
def _(node: t.LearningRate) -> str:
    return f"learning_rate {' '.join(map(_text, node.phases))}"


@_text.register
def _(node: t.Phase) -> str:
    return _call(node.name.text, node.arguments)


@_text.register
def _(node: t.Evaluate) -> str:
    source = "" if node.source is None else f" on {_text(node.source)}"
    return f"evaluate every {_text(node.every)} batches {_text(node.batches)}{source}"


@_text.register
def _(node: t.Random) -> str:
    return f"random {node.mode}"


@_text.register
def _(node: t.Accumulate) -> str:
    return f"accumulate {_text(node.count)}"


@_text.register
def _(node: t.Split) -> str:
    return f"split {_commas(node.lists)}"


@_text.register
def _(node: t.SplitAuto) -> str:
    return "split auto"


@_text.register
def _(node: t.Stage) -> str:
    return f"stage {_commas(node.modules)}"


@_text.register
def _(node: t.Order) -> str:
    return f"schedule {_call(_text(node.name), node.arguments)}"


@_text.register
def _(node: t.Microbatches) -> str:
    return f"microbatches {_text(node.count)}"


@_text.register
def _(node: t.Checkpoint) -> str:
    numbers = [("every", node.every), ("keep", node.keep), ("keep_every", node.keep_every)]
    said = [f"{word} {_text(number)}" for word, number in numbers if number is not None]
    return " ".join(["checkpoint", *said, *([f"on_nan {node.on_nan}"] if node.on_nan else [])])


@_text.register
def _(node: t.Typed) -> str:
    return f"{node.what} = {_text(node.dtype)}"


@_text.register
def _(node: t.LossScale) -> str:
    return f"loss_scale = {_text(node.value)}"


@_text.register
def _(node: t.Prefetch) -> str:
    return f"prefetch {_text(node.size)}"


@_text.register
def _(node: t.Peak) -> str:
    return f"peak {node.dtype.text} = {_text(node.value)}"


@_text.register
def _(node: t.Recompute) -> str:
    if node.patterns:
        return f"recompute {_commas(node.patterns)}"
    return f"recompute {'selective' if node.budget is None else f'to {_text(node.budget)}'}"


@_text.register
def _(node: t.Select) -> str:
    words = [] if node.phase is None else [node.phase]
    words.append(node.op)
    words += [] if node.axes is None else ["over", _text(node.axes)]
    words += [] if node.pattern is None else ["in", _text(node.pattern)]
    return " ".join(words)


@_text.register
def _(node: t.Forbid) -> str:
    return f"forbid {_text(node.select)}"


@_text.register
def _(node: t.Count) -> str:
    measure = "bytes " if node.measure == "bytes" else ""
    return f"{measure}{_text(node.select)} {node.comparison} {_text(node.bound)}"


@_text.register
def _(node: t.TimesBound) -> str:
    return "bound" if node.factor is None else f"{_text(node.factor)} * bound"


@_text.register
def _(node: t.LayoutIs) -> str:
    return f"layout {_text(node.name)} {_layout(node.layout)}"


@_text.register
def _(node: t.LocalIs) -> str:
    return f"local {_text(node.name)} [{_commas(node.sizes)}]"


@_text.register
def _(node: t.LocalBytes) -> str:
    return f"local bytes {_text(node.name)} {node.comparison} {_text(node.bound)}"


_BLOCKS = (t.Mesh, t.Dims, t.Pipeline, t.Stages, t.Precision, t.Schedule, t.Cluster, t.Expect)
