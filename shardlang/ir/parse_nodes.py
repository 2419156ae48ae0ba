"""The nodes of a graph's text, made one by one: leaves, calls and reshards."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import torch
from lark import Token, v_args
from torch import Tensor, fx
from torch.fx.node import Argument

from shardlang.ir.compat import FakeTensorMode
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import ShardError, is_item, is_reshard
from shardlang.ir.implied import implied_factors, implied_gradient, implied_linear
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, Value, info, set_info, tensors_of
from shardlang.ir.parse_calls import Functions, Made
from shardlang.ir.parse_check import Trial, check_arguments, kept
from shardlang.ir.parse_clauses import Clause, Said, once
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.parse_reshards import Written, resharded
from shardlang.ir.parse_results import ResultReader
from shardlang.ir.parse_said import check_said, check_split, stated
from shardlang.ir.parse_types import Axes, Type
from shardlang.ir.reads import Reads
from shardlang.ir.reshard import apply_reshards
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.rule import Rule, Sharding
from shardlang.ir.spelling import layouts_of, op_layouts, whole_layouts
from shardlang.ir.text import Stage

Rules = Callable[[fx.Node, bool], Rule]
"""The rule of a leaf or a call; the second argument says whether shards draw apart."""

Types = Type | None | tuple[Type | None, ...]


@v_args(inline=True)
class GraphReader(ResultReader):
    """Reads a graph into `graph`, line by line.

    Attributes:
        awaits: the rule of the grammar that the next line is read by.
    """

    def __init__(self, rules: Rules, functions: Functions) -> None:
        super().__init__(functions)
        self.rules, self.mode = rules, FakeTensorMode()
        self.trial = Trial(self.mode, self.graph.mesh)
        self.leaves: set[tuple[LeafKind, str]] = set()
        self.awaits = "stage"

    def program(self, word: Token) -> None:
        self.level, self.awaits = Stage.PROGRAM, "mesh"

    def depth(self, depth: Token | None) -> None:
        self.level = Stage.TRACED if depth is None else Stage(f"graph {depth}")
        self.awaits = "mesh"

    def mesh(self, *axes: Axis) -> None:
        self.graph.mesh = self.mesh_of(axes)
        data = (self.axes_by_name[name] for name in self.data)
        self.graph.data_axes = frozenset(data)
        self.trial.mesh, self.trial.local = self.graph.mesh, self.level is Stage.PROGRAM
        self.awaits = "line"

    def fast(self, word: Token) -> None:
        if self.nodes or self.graph.fast_random:
            raise GraphTextError("`random fast` stands in the wrong place", BELOW, word)
        self.graph.fast_random = True

    def loss(self, word: Token, name: str) -> None:
        if self.nodes or self.graph.loss is not None:
            raise GraphTextError("`loss` stands in the wrong place", BELOW, word)
        self.graph.loss = name

    def leaf(self, kind: Token, name: str, *clauses: Clause[Leaf]) -> Leaf:
        if kind not in set(LeafKind):
            remedy = "write `param`, `buffer`, `input` or `constant`"
            raise GraphTextError(f"`{kind}` is not a kind of leaf", remedy, kind)
        once(clauses)
        leaf = Leaf(name, LeafKind(kind), "", torch.float32, Layout(()))
        if (leaf.kind, name) in self.leaves:
            raise GraphTextError(f'two leaves are `{kind} "{name}"`', "leave one out", kind)
        self.leaves.add((leaf.kind, name))
        return reduce(lambda made, clause: clause.add(made), clauses, leaf)

    def reshard(self, name: Token, axes: Axes, *args: Argument | Route | Reads) -> Written:
        return Written(name, axes, args)

    def item(self, name: Token, index: int) -> Made:
        source = self.find_node(name)
        several = info(source).value
        count = len(several) if isinstance(several, (list, tuple)) else 0
        if not isinstance(several, (list, tuple)) or index >= count or several[index] is None:
            remedy = f"it has {count} results" if count else "read the node itself"
            raise GraphTextError(f"`{name}` has no result {index} to pick", remedy, name)
        return Made(operator.getitem, (source, index), Place.of(name))

    def node(
        self, name: Token, made: Leaf | Made | Written, types: Types, *clauses: Clause[Said]
    ) -> None:
        if name in self.nodes:
            raise GraphTextError(f"two nodes are called `{name}`", "give each its own name", name)
        said = reduce(lambda found, clause: clause.add(found), clauses, Said(places=once(clauses)))
        if isinstance(made, Made) and made.target is not operator.getitem:
            check_arguments(made)
        node = self._create(str(name), made, types, said)
        if node.name != name:
            remedy = "Python or PyTorch uses that word, or it is not ASCII: choose another"
            raise GraphTextError(f"`{name}` cannot be the name of a node", remedy, name)
        place = next((one.place for one in present(types)), Place.of(name))
        if isinstance(made, Leaf) and not isinstance(types, Type):
            raise GraphTextError(f"the leaf `{name}` is not one tensor", "give it one type", name)
        self.nodes[str(name)] = node
        self._describe(node, made, types, said, place)

    def _create(self, name: str, made: Leaf | Made | Written, types: Types, said: Said) -> fx.Node:
        graph = self.graph.graph
        if isinstance(made, Leaf):
            return graph.placeholder(name)
        if isinstance(made, Written):
            made = resharded(made, present(types), said)
        edit = Rewriter(graph)
        return edit.add(made.target, made.args, made.kwargs, record=NodeInfo(), name=name)

    def _describe(
        self, node: fx.Node, made: Leaf | Made | Written, types: Types, said: Said, place: Place
    ) -> None:
        """Give a node its record."""
        set_info(node, replace(said.record, value=self._value(types, said, place)))
        layouts = [one.layout for one in present(types)]
        if isinstance(made, Leaf):
            self._add_leaf(node, made, layouts[0])
        check_said(node, said, self.level, layouts)
        record = replace(
            info(node),
            stated=stated(said, layouts),
            layout=self._layout(node, layouts, said),
        )
        set_info(node, record)
        self.trial.check(node, place)
        sharding = self._split(node, layouts, said, place)
        set_info(node, replace(record, sharding=sharding))
        differentiable = self._flows(node, sharding, said)
        set_info(node, replace(record, sharding=sharding, differentiable=differentiable))
        self._check_layouts(node, layouts, said, place)

    def _check_layouts(
        self, node: fx.Node, layouts: list[Layout], said: Said, place: Place
    ) -> None:
        """Refuse a type that says more of the layout than the node has."""
        if self.level is Stage.TRACED and said.stated is not None and said.stated.dims is None:
            return
        local = self.level is Stage.PROGRAM and info(node).layout is None
        kept(whole_layouts(node) if local else layouts_of(node), layouts, node, place)
        made = op_layouts(node) if info(node).sharding is not None or is_item(node) else []
        if made:
            kept(made, [layout.unlabelled() for layout in layouts], node, place)

    def _value(self, types: Types, said: Said, place: Place) -> Value:
        strides = list(said.strides)
        if strides and [len(one) for one in strides] != [
            len(t.layout.dims) for t in present(types)
        ]:
            raise GraphTextError(
                "the strides are not those of the results",
                "write a list for each result, with a number for each dim",
                said.places["strides"],
            )

        def fake(one: Type | None) -> Tensor | None:
            if one is None:
                return None
            if not strides:
                return torch.empty(one.layout.shape, dtype=one.dtype)
            return torch.empty_strided(one.layout.shape, strides.pop(0), dtype=one.dtype)

        try:
            with self.mode:
                return tuple(map(fake, types)) if isinstance(types, tuple) else fake(types)
        except RuntimeError as fault:
            reason = str(fault).splitlines()[0]
            wrong = f"there is no tensor of that shape: {reason}"
            raise GraphTextError(wrong, "correct the sizes or the strides", place) from None

    def _add_leaf(self, node: fx.Node, leaf: Leaf, layout: Layout) -> None:
        (value,) = tensors_of(node)
        rest = layout if self.level is Stage.PROGRAM else Layout.whole(layout.shape)
        made = replace(leaf, node=node.name, dtype=value.dtype, layout=rest)
        self.graph.leaves.append(made)
        if self.level is Stage.TRACED:
            set_info(node, replace(info(node), leaf=made))

    def _split(
        self, node: fx.Node, layouts: list[Layout], said: Said, place: Place
    ) -> Sharding | None:
        if self.level in (Stage.TRACED, Stage.PROGRAM) or is_item(node) or is_reshard(node):
            return None
        try:
            first = self.rules(node, self.graph.fast_random)
        except ShardError as fault:
            raise GraphTextError(fault.message, fault.help, place) from None
        rule = check_split(first, said)
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


BELOW = "it stands once, below the mesh and above all nodes"


def present(types: Types) -> list[Type]:
    """The types of the results that are there."""
    each = types if isinstance(types, tuple) else (types,)
    return [one for one in each if one is not None]
