"""The nodes of a graph's text, made one by one: leaves, calls, reshards, results."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from lark import Token, v_args
from torch import Tensor, fx
from torch.fx.node import Argument

from shardlang.ir.collective import ReduceOp
from shardlang.ir.compat import FakeTensorMode
from shardlang.ir.experts.route import Route
from shardlang.ir.experts.ways import Way, Ways
from shardlang.ir.graph import ShardError, ShardGraph, is_item, is_reshard
from shardlang.ir.implied import implied_factors, implied_gradient, implied_linear
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import NodeInfo, Value, info, set_info, tensors_of
from shardlang.ir.parse_calls import Functions, Made
from shardlang.ir.parse_clauses import Clause, ClauseReader, LeafClause, Pair, Said
from shardlang.ir.parse_types import Axes, GraphTextError, Type, Wanted
from shardlang.ir.records import Stated
from shardlang.ir.reshard import NoChange, Reshard, apply_reshard, apply_reshards
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.rule import Rule, Sharding
from shardlang.ir.spelling import layouts_of, op_layouts
from shardlang.ir.text import Stage

Rules = Callable[[fx.Node, bool], Rule]
"""The rule of a leaf or a call; the second argument says whether shards draw apart."""

Types = Type | None | tuple[Type | None, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A reshard as written: its name and axes, and what it reads."""

    name: Token
    axes: Axes
    args: tuple[Argument | Route, ...]


@v_args(inline=True)
class GraphReader(ClauseReader):
    """Reads a graph into `graph`."""

    def __init__(self, rules: Rules, functions: Functions) -> None:
        super().__init__(functions)
        self.rules, self.mode = rules, FakeTensorMode()
        self.graph = ShardGraph(Mesh(()), fx.Graph(), [], [])
        self.level = Stage.TRACED

    def program(self, word: Token) -> None:
        self.level = Stage.PROGRAM

    def depth(self, depth: Token | None) -> None:
        self.level = Stage.TRACED if depth is None else Stage(f"graph {depth}")

    def fast(self, word: Token) -> None:
        self.graph.fast_random = True

    def loss(self, word: Token, name: str) -> None:
        self.graph.loss = name

    def leaf(self, kind: Token, name: str, *clauses: LeafClause) -> Leaf:
        leaf = Leaf(name, LeafKind(str(kind)), "", torch.float32, Layout(()))
        for clause in clauses:
            leaf = clause(leaf)
        return leaf

    def reshard(self, name: Token, axes: Axes, *args: Argument | Route) -> Written:
        return Written(name, axes, args)

    def item(self, name: Token, index: int) -> Made:
        return Made(operator.getitem, (self.name(name), index))

    def node(
        self, name: Token, made: Leaf | Made | Written, types: Types, *clauses: Clause
    ) -> None:
        if name in self.nodes:
            raise GraphTextError(f"two nodes are called `{name}`", name.line)
        said = Said()
        for clause in clauses:
            said = clause(said)
        node = self._create(str(name), made, types, said)
        if node.name != name:
            raise GraphTextError(f"`{name}` cannot be the name of a node", name.line)
        self.nodes[str(name)] = node
        self._describe(node, made, types, said, name.line)

    def _create(self, name: str, made: Leaf | Made | Written, types: Types, said: Said) -> fx.Node:
        graph = self.graph.graph
        if isinstance(made, Leaf):
            return graph.placeholder(name)
        if isinstance(made, Written):
            made = resharded(made, types, said)
        edit = Rewriter(graph)
        return edit.add(made.target, made.args, made.kwargs, record=NodeInfo(), name=name)

    def _describe(
        self, node: fx.Node, made: Leaf | Made | Written, types: Types, said: Said, line: int | None
    ) -> None:
        """Give a node its record."""
        set_info(node, replace(said.record, value=self._value(types, said)))
        layouts = [one.layout for one in present(types)]
        if isinstance(made, Leaf):
            self._add_leaf(node, made, layouts[0])
        sharding = self._split(node, layouts, said)
        set_info(
            node,
            replace(
                info(node),
                sharding=sharding,
                stated=stated(said.stated, layouts),
                differentiable=self._flows(node, sharding, said),
                layout=self._layout(node, layouts, said),
            ),
        )
        if sharding is not None and op_layouts(node) != [one.unlabelled() for one in layouts]:
            found = ", ".join(map(str, op_layouts(node)))
            raise GraphTextError(f"`{node}` is split into {found}, not as its type says", line)

    def _value(self, types: Types, said: Said) -> Value:
        strides = list(said.strides)

        def fake(one: Type | None) -> Tensor | None:
            if one is None:
                return None
            if not strides:
                return torch.empty(one.layout.shape, dtype=one.dtype)
            return torch.empty_strided(one.layout.shape, strides.pop(0), dtype=one.dtype)

        with self.mode:
            return tuple(map(fake, types)) if isinstance(types, tuple) else fake(types)

    def _add_leaf(self, node: fx.Node, leaf: Leaf, layout: Layout) -> None:
        (value,) = tensors_of(node)
        rest = layout if self.level is Stage.PROGRAM else Layout.whole(layout.shape)
        made = replace(leaf, node=node.name, dtype=value.dtype, layout=rest)
        self.graph.leaves.append(made)

    def _split(self, node: fx.Node, layouts: list[Layout], said: Said) -> Sharding | None:
        if self.level in (Stage.TRACED, Stage.PROGRAM) or is_item(node) or is_reshard(node):
            return None
        rules = self.rules(node, self.graph.fast_random)
        rule = (rules, *rules.others)[said.notation]
        made = Sharding(rule, {**implied_factors(rule, layouts), **said.factors})
        made.linear = implied_linear(made, layouts) if said.linear is None else said.linear
        made.origins, made.closed = said.origins, said.closed
        return made

    def _flows(self, node: fx.Node, sharding: Sharding | None, said: Said) -> bool:
        if said.flags & {"gradient", "no_gradient"}:
            return "gradient" in said.flags
        if self.level is Stage.TRACED:
            return False
        if node.op == "placeholder":
            return self.graph.leaves[-1].trainable
        return implied_gradient(node, info(node).value, sharding)

    def _layout(
        self, node: fx.Node, layouts: list[Layout], said: Said
    ) -> Layout | tuple[Layout, ...] | None:
        bucket = node.target is apply_reshards
        usual = bucket or isinstance(info(node).value, Tensor)
        labelled = self.level in (Stage.LABELLED, Stage.PROGRAM) and usual
        if "unlabelled" in said.flags or not (labelled or "labelled" in said.flags):
            return None
        return layouts[0] if isinstance(info(node).value, Tensor) else tuple(layouts)

    def result(self, kind: Token, name: str, node: Token) -> tuple[Result, fx.Node | None]:
        value = self.name(node)
        if value is not None and not isinstance(value, fx.Node):
            raise GraphTextError(f"`{node}` is no node", node.line)
        tensor = tensors_of(value)[0] if value is not None else torch.empty(())
        layout = Layout.whole(tensor.shape)
        if value is not None and self.level is Stage.PROGRAM:
            layout = layouts_of(value)[0]
        return Result(name, ResultKind(str(kind)), tensor.dtype, layout), value

    def results(self, *pairs: tuple[Result, fx.Node | None] | None) -> None:
        there = [pair for pair in pairs if pair is not None]
        graph = self.graph
        graph.mesh, graph.data_axes = self.read_mesh, self.data
        graph.results = [result for result, _ in there]
        output = graph.graph.output(tuple(node for _, node in there))
        set_info(output, NodeInfo())
        graph.graph.lint()

    def refused(self, code: Token, message: str, help: str) -> None:
        self.graph.info.refusals.append(ShardError(str(code), message, help=help))

    def recorded(self, name: str, layout: Layout) -> None:
        self.graph.info.layouts[name] = layout

    strings = ClauseReader.every

    def prices(self, *pairs: tuple[Way, float]) -> dict[Way, float]:
        return dict(pairs)

    def price(self, way: str, price: float) -> tuple[Way, float]:
        return Way(way), price

    def reasons(self, *pairs: tuple[Way, str]) -> dict[Way, str]:
        return dict(pairs)

    def reason(self, way: str, why: str) -> tuple[Way, str]:
        return Way(way), why

    def ways(
        self, names: tuple[str, ...], module: str, axes: Axes, prices: dict[Way, float],
        taken: str, closed: dict[Way, str] | None,
    ) -> None:  # fmt: skip
        self.graph.info.ways.append(Ways(names, module, axes, prices, Way(taken), closed or {}))


def present(types: Types) -> list[Type]:
    """The types of the results that are there."""
    each = types if isinstance(types, tuple) else (types,)
    return [one for one in each if one is not None]


def stated(wanted: Wanted | None, layouts: list[Layout]) -> Stated | None:
    """The stated layout, its open dims whole."""
    if wanted is None:
        return None
    layout = layouts[0]
    if wanted.dims is None:
        return Stated(layout.unlabelled(), place=wanted.place)
    whole = Layout.whole(layout.shape).dims
    pairs = zip(wanted.dims, whole, strict=True)
    dims = tuple(full if dim is None else dim for dim, full in pairs)
    open_dims = frozenset(i for i, dim in enumerate(wanted.dims) if dim is None)
    return Stated(Layout(dims, wanted.partial), open_dims, wanted.place)


_EXTREMES = (ReduceOp.MAX, ReduceOp.MIN)


def resharded(written: Written, types: Types, said: Said) -> Made:
    """The call of a reshard, or of several that are sent as one."""
    kind, _, last = written.name.rpartition("_")
    reduce = ReduceOp(last) if last in _EXTREMES else ReduceOp.SUM
    value, *rest = written.args
    route = next((arg for arg in rest if isinstance(arg, Route)), None)
    groups = [arg for arg in rest if not isinstance(arg, Route)]
    layouts = [one.layout for one in present(types)]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    try:
        reshards = [
            _reshard(written, said.between or (_layout_of(source), layout), reduce, route)
            for source, layout in zip(values, layouts, strict=True)
        ]
    except NoChange as fault:
        raise GraphTextError(str(fault), written.name.line) from None
    if any(one.kind != (kind if reduce in _EXTREMES else written.name) for one in reshards):
        wrong = f"`{written.name}` is a change by {reshards[0].kind}: {reshards[0]}"
        raise GraphTextError(wrong, written.name.line)
    if isinstance(value, (list, tuple)):
        return Made(apply_reshards, (tuple(values), tuple(reshards)))
    return Made(apply_reshard, (value, reshards[0], *groups))


def _reshard(written: Written, ends: Pair, reduce: ReduceOp, route: Route | None) -> Reshard:
    return Reshard(written.axes, *ends, reduce, route)


def _layout_of(value: object) -> Layout:
    assert isinstance(value, fx.Node), f"{value} is no node"
    return layouts_of(value)[0]
