"""Graphs as text: one line per node, the same on every device and in every run.

    graph split
    mesh dp = 2 data, tp = 3
    p_up_weight = param "up.weight" trainable : f32[10@tp, 6]
    x = input "x" : f32[7@dp, 5, 6]
    linear = linear(x, p_up_weight) : f32[7@dp, 5, 10@tp]
    return output "output" linear

`shardlang.ir.parse` reads the text. What follows from a call and its type is not printed
(`shardlang.ir.implied`). Module, source line and reasons are printed only if asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import fx

from shardlang.ir.experts.strategies import Strategies
from shardlang.ir.graph import ShardError, ShardGraph
from shardlang.ir.implied import implied_factors, implied_gradient, implied_linear
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, Result, Stored
from shardlang.ir.mesh import Axis, Mesh, product
from shardlang.ir.node import NodeInfo, info, results_of
from shardlang.ir.records import Stated
from shardlang.ir.reshard import Reshard, apply_reshard, apply_reshards
from shardlang.ir.rule import Sharding
from shardlang.ir.spelling import call_text, layouts_of, op_layouts, quoted, types_of


class Stage(str, Enum):
    """How much is known of a graph; its text's first line."""

    TRACED = "graph"
    """Ops, and what the spec states."""
    SPLIT = "graph split"
    """Every op has a rule, and is split by it."""
    LABELLED = "graph labelled"
    """Every value has its labelled layout too."""
    PROGRAM = "program"
    """What devices run: labelled layouts, and local arguments that have no rules."""

    __str__ = str.__str__


def stage_of(graph: ShardGraph) -> Stage:
    """How much is known of a graph that is not localized."""
    records = [info(node) for node in graph.graph.nodes]
    if any(record.layout is not None for record in records):
        return Stage.LABELLED
    return Stage.SPLIT if any(record.sharding for record in records) else Stage.TRACED


def graph_text(graph: ShardGraph, *, local: bool = False, long: bool = False) -> str:
    """The graph as text.

    Args:
        local: whether it is localized: a program, whose arguments fit no rules.
        long: with modules, source lines and reasons.
    """
    stage = Stage.PROGRAM if local else stage_of(graph)
    return "\n".join(Printer(graph, stage, results_in(graph, local), long).lines())


Pair = tuple[Result, fx.Node | None]


def results_in(graph: ShardGraph, local: bool) -> list[Pair]:
    """The results and their nodes; of a localized graph those that are tensors."""
    pairs = zip(graph.results, graph.result_nodes, strict=True)
    return [pair for pair in pairs if not local or pair[1] is not None]


@dataclass(frozen=True, slots=True)
class Printer:
    """Prints one graph."""

    graph: ShardGraph
    stage: Stage
    results: Sequence[tuple[Result, fx.Node | None]]
    long: bool = False

    def lines(self) -> Iterator[str]:
        """All lines."""
        graph = self.graph
        yield str(self.stage)
        yield f"mesh {mesh_text(graph.mesh, graph.data_axes)}"
        if graph.fast_random:
            yield "random fast"
        if graph.loss is not None:
            yield f"loss {quoted(graph.loss)}"
        leaves = {node: leaf for node, leaf in graph.placeholders()}
        for node in graph.graph.nodes:
            if node.op != "output":
                made = leaf_text(leaves[node]) if node in leaves else call_text(node)
                line = f"{node.name} = {made} : {types_of(node, self.stage is Stage.PROGRAM)}"
                yield " ".join([line, *self.clauses(node, leaves.get(node))])
        words = (f"{result.kind} {quoted(result.name)} {node}" for result, node in self.results)
        yield f"return {', '.join(words)}"
        yield from self._found()

    def _found(self) -> Iterator[str]:
        """What the passes found out about the graph as a whole."""
        found = self.graph.info
        yield from map(refusal_text, found.refusals)
        yield from (f"check {quoted(source)}" for source in found.checks)
        orders = found.draw_orders.items()
        yield from (f"order {quoted(name)} [{_numbers(order)}]" for name, order in orders)
        if self.long:
            yield from (f"layout {quoted(k)} {layout}" for k, layout in found.layouts.items())
            yield from map(strategies_text, found.strategies)

    def clauses(self, node: fx.Node, leaf: Leaf | None) -> Iterator[str]:
        """What is to be said of a node beside its call and its type."""
        record = info(node)
        if record.sharding is not None and self.stage is not Stage.PROGRAM:
            yield from split_clauses(node, record.sharding, self.long)
        if node.target in (apply_reshard, apply_reshards):
            yield from reshard_clauses(node)
        yield from self._labels(node, record, leaf)
        if record.stated is not None:
            yield stated_clause(record.stated, layouts_of(node)[0], self.long)
        yield from record_clauses(record)
        if self.long:
            yield from origin_clauses(record)

    def _labels(self, node: fx.Node, record: NodeInfo, leaf: Leaf | None) -> Iterator[str]:
        """Whether a value has labels and a gradient, where that is not as usual."""
        labelled = self.stage in (Stage.LABELLED, Stage.PROGRAM)
        usual = isinstance(record.value, torch.Tensor) or node.target is apply_reshards
        if labelled and usual != (record.layout is not None):
            yield "labelled" if record.layout is not None else "unlabelled"
        if self.stage is Stage.TRACED:
            flows = False
        elif leaf is not None:
            flows = leaf.trainable
        else:
            flows = implied_gradient(node, record.value, self._sharding(record))
        if flows != record.differentiable:
            yield "gradient" if record.differentiable else "no_gradient"

    def _sharding(self, record: NodeInfo) -> Sharding | None:
        return None if self.stage is Stage.PROGRAM else record.sharding


def mesh_text(mesh: Mesh, data: frozenset[Axis]) -> str:
    """`dp = 2 data, tp = 3 over nvlink`."""
    return ", ".join(
        f"{axis.name} = {axis.size}"
        + (f" over {axis.link}" if axis.link else "")
        + (" data" if axis in data else "")
        for axis in mesh.axes
    )


def leaf_text(leaf: Leaf) -> str:
    """`param "up.weight" trainable store dp`."""
    words = [f"{leaf.kind} {quoted(leaf.name)}"]
    words += ["trainable"] * leaf.trainable
    words += ["nonpersistent"] * (not leaf.persistent)
    words += [f"also {', '.join(map(quoted, leaf.aliases))}"] if leaf.aliases else []
    words += [f"store {product(leaf.store)}"] if leaf.store else []
    words += [str(leaf.splits)] if leaf.splits is not Stored.VALUE else []
    words += ["regather"] * leaf.regather
    return " ".join(words)


def split_clauses(node: fx.Node, sharding: Sharding, long: bool) -> Iterator[str]:
    """How an op is split, as far as the layouts of its results do not say it."""
    results = op_layouts(node)
    usual = implied_factors(sharding.rule, results)
    news = {name: dim for name, dim in sharding.factors.items() if usual[name] != dim}
    if sharding.rule.notation:
        yield f"notation {sharding.rule.notation}"
    if news:
        yield "split " + ", ".join(f"{name}: {dim}" for name, dim in news.items())
    if implied_linear(sharding, results) != sharding.linear:
        yield f"passes {_passed(sharding)}"
    if long:
        yield from (
            f"because {axis} {quoted(origin.text)} {quoted(origin.source)}"
            for axis, origin in sharding.origins.items()
        )
        yield from (f"closed {axis}" for axis in sorted(sharding.closed))


def _passed(sharding: Sharding) -> str:
    """`tp(0, 1)`; `none` where nothing passes."""
    pairs = (f"{axis}({_numbers(which)})" for axis, which in sharding.linear.items())
    return ", ".join(pairs) or "none"


def _numbers(numbers: Sequence[int] | frozenset[int]) -> str:
    return ", ".join(map(str, sorted(numbers) if isinstance(numbers, frozenset) else numbers))


def reshard_clauses(node: fx.Node) -> Iterator[str]:
    """Where a reshard begins and ends, if that is not as its operand and its type say."""
    values, reshards = node.args[:2]
    sources = values if isinstance(values, (list, tuple)) else [values]
    each = reshards if isinstance(reshards, (list, tuple)) else [reshards]
    for source, reshard, layout in zip(sources, each, layouts_of(node), strict=True):
        assert isinstance(source, fx.Node) and isinstance(reshard, Reshard)
        if layouts_of(source)[0] != reshard.src or layout != reshard.dst:
            yield f"from {reshard.src} to {reshard.dst}"


def stated_clause(stated: Stated, layout: Layout, long: bool) -> str:
    """`stated [7@dp, ?, 6] +tp`; `stated` alone where the type says the rest."""
    place = f" at {quoted(stated.place)}" if long and stated.place else ""
    if stated.layout == layout.unlabelled() and not stated.open:
        return "stated" + place
    dims = ["?" if i in stated.open else str(dim) for i, dim in enumerate(stated.layout.dims)]
    marks = [f" +{axis}" for axis in sorted(stated.layout.partial)]
    return f"stated [{', '.join(dims)}]{''.join(marks)}{place}"


def record_clauses(record: NodeInfo) -> Iterator[str]:
    """What is left of a record, where it is not as usual."""
    if record.constant is not None:
        yield f"constant {record.constant!r}"
    if record.draws_in is not None:
        yield f"draws [{_numbers(record.draws_in)}]"
    if record.full_gather is not None:
        gather = record.full_gather
        yield f"within {gather.start} to {gather.widest} to {gather.end}"
    for flag in ("no_grad", "regather", "held", "random"):
        if getattr(record, flag):
            yield flag


def origin_clauses(record: NodeInfo) -> Iterator[str]:
    """Where a node comes from, and how its values lie in memory."""
    values = results_of(record.value)
    if not all(value.is_contiguous() for value in values):
        yield "strides " + ", ".join(f"[{_numbers(value.stride())}]" for value in values)
    for word, text in (("for", record.reader), ("in", record.module), ("line", record.source)):
        if text:
            yield f"{word} {quoted(text)}"


def refusal_text(refusal: ShardError) -> str:
    """`refused SH0407 "..." help "..."`."""
    return f"refused {refusal.code} {quoted(refusal.message)} help {quoted(refusal.help)}"


def strategies_text(found: Strategies) -> str:
    """The strategies for one region of experts, and what each would move."""
    prices = ", ".join(f"{quoted(one)} {price!r}" for one, price in found.bytes.items())
    closed = ", ".join(f"{quoted(one)} {quoted(why)}" for one, why in found.closed.items())
    names = ", ".join(map(quoted, found.ops))
    where = f"in {quoted(found.module)} over {product(found.axes)}"
    return f"ways {names} {where} : {prices} take {quoted(found.taken)} not ({closed})"
