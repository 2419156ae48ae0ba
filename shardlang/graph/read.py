"""From a graph, at any stage of the passes, to a picture with one box per op."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.cost.reshards import sent_backward, sent_forward
from shardlang.graph.picture import Arrow, Box, BoxKind, Drawn, Picture
from shardlang.ir.graph import (
    Pair,
    ShardGraph,
    is_item,
    is_reshard,
    items_of,
    regathered,
    reshards_of,
    result_layout,
    sharding_of,
)
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, ResultKind
from shardlang.ir.mesh import product
from shardlang.ir.node import has_several, info, tensor_of
from shardlang.ir.printed_type import dtype_name, printed_type
from shardlang.ir.program import LocalProgram, apply_reshards, with_gradient
from shardlang.ir.reduced import Reduced
from shardlang.ir.reshard import Change
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.plan.names import module_of, op_name
from shardlang.plan.text import bytes_text, shape_text
from shardlang.rules.registry import find, traits_of
from shardlang.rules.streams import stream_key


def _values_read(node: fx.Node) -> list[fx.Node]:
    """The values that a node reads; the key of the random streams is not a value of the model."""
    return [source for source in node.all_input_nodes if source.target is not stream_key]


@dataclass(slots=True)
class Reader:
    """Reads one graph.

    Attributes:
        graph: its mesh, leaves and results.
        stage: how far the passes have brought it.
        program: the program of a rewritten graph that is trained; it tells where gradients flow.
    """

    graph: ShardGraph
    stage: Drawn
    program: LocalProgram | None = None
    leaves: dict[fx.Node, Leaf] = field(init=False)
    reduced: Reduced | None = field(init=False)

    def __post_init__(self) -> None:
        self.leaves = dict(self.graph.placeholders())
        self.reduced = None if self.program is None else Reduced(self.program)

    def picture(self) -> Picture:
        """One box per leaf, op, reshard and result."""
        made = Picture()
        flowing = with_gradient(self.program) if self.program is not None else set()
        for node in self.graph.graph.nodes:
            if node.op == "output":
                self._results(made)
            elif node.target is not stream_key and not self._is_through(node, flowing):
                made.add(self._box(node, flowing))
                for operand in _values_read(node):
                    made.connect(self._arrow(operand, node, flowing))
        return without_unread(made)

    def _is_through(self, node: fx.Node, flowing: set[fx.Node]) -> bool:
        """Whether a node is not drawn, its value going straight on."""
        if node.op == "placeholder":
            return False
        if is_item(node):
            return True
        if is_reshard(node):
            on_leaf = self._source(node).op == "placeholder" and _is_vary(node)
            return on_leaf or not _calls(node, flowing)
        return _keeps_elements(node)

    def _source(self, node: fx.Node) -> fx.Node:
        source = node.args[0]
        if isinstance(source, (tuple, list)):
            source = source[0]
        assert isinstance(source, fx.Node)
        return source

    def _box(self, node: fx.Node, flowing: set[fx.Node]) -> Box:
        if node.op == "placeholder":
            return self._leaf(node, flowing)
        if is_reshard(node):
            lines = reshard_lines(node, flowing, self.reduced)
            return Box(node.name, BoxKind.RESHARD, module_of(node), lines, lines[0].split(" ")[0])
        name, light = op_name(node), is_light(node)
        return Box(node.name, BoxKind.OP, info(node).module, (name,), name, light, (name,))

    def _leaf(self, node: fx.Node, flowing: set[fx.Node]) -> Box:
        leaf = self.leaves[node]
        of_module = leaf.kind is not LeafKind.INPUT
        module, _, short = leaf.name.rpartition(".") if of_module else ("", "", leaf.name)
        lines = (short, *self._type(node), *_reduced(node, flowing, self.reduced))
        return Box(node.name, BoxKind(leaf.kind.value), module, lines)

    def _arrow(self, operand: fx.Node, node: fx.Node, flowing: set[fx.Node]) -> Arrow:
        source, reader = operand, node
        needs = self._needs(operand, node)
        while self._is_through(source, flowing):
            source, reader = self._passed_on(source, flowing), source
            needs = self._needs(source, reader) or needs
        lines = self._type(operand)
        if needs is not None:
            lines = (*lines, f"needs {needs}")
        return Arrow(source.name, node.name, lines, needs is not None)

    def _passed_on(self, node: fx.Node, flowing: set[fx.Node]) -> fx.Node:
        """What a node that is not drawn passes on; of a bucket that is not drawn, what went in."""
        source, index = node.args[0], node.args[1] if is_item(node) else None
        assert isinstance(source, fx.Node)
        if source.target is apply_reshards and self._is_through(source, flowing):
            assert isinstance(index, int)
            source = reshards_of(source)[index][0]
        return source

    def _needs(self, operand: fx.Node, reader: fx.Node) -> Layout | None:
        """The layout in which a reader needs an operand, where it is another one."""
        if self.stage is not Drawn.PROPAGATED or info(reader).sharding is None or is_item(reader):
            return None
        sharding, have = sharding_of(reader), result_layout(operand)
        for index, node in enumerate(operands_of(reader)):
            if node is operand and sharding.operand(index) != have:
                return sharding.operand(index)
        return None

    def _type(self, node: fx.Node) -> tuple[str, ...]:
        """The printed type of a value, and its local shape where that differs."""
        val = info(node).value
        if not isinstance(val, torch.Tensor):
            return ()
        layout = self._layout(node)
        if layout is None:
            return (dtype_name(val.dtype) + shape_text(val.shape),)
        return type_lines(val.dtype, layout)

    def _layout(self, node: fx.Node) -> Layout | None:
        if self.stage is Drawn.TRACED:
            return None
        found = info(node).layout if self.stage is Drawn.REWRITTEN else result_layout(node)
        return found.in_place() if isinstance(found, Layout) else None

    def _results(self, made: Picture) -> None:
        for result, value in zip(self.graph.results, self.graph.result_nodes, strict=True):
            if value is not None:
                title = result.name if result.kind is ResultKind.OUTPUT else f"new {result.name}"
                name = f"result {result.name}"
                made.add(Box(name, BoxKind.OUTPUT, "", (title, *self._type(value))))
                source = self._arrow(value, value, set()).source
                made.connect(Arrow(source, name))


def type_lines(dtype: torch.dtype, layout: Layout) -> tuple[str, ...]:
    """The printed type, and its local shape where that differs."""
    whole = printed_type(dtype, layout)
    if layout.max_local_shape() == layout.shape:
        return (whole,)
    return whole, f"local {shape_text(layout.max_local_shape())}"


def is_light(node: fx.Node) -> bool:
    """Whether an op only carries its factors along: pointwise and the like."""
    declared = find(node.target)
    return declared is None or declared.passes


def _keeps_elements(node: fx.Node) -> bool:
    """Whether an op gives the elements of its operand, all of them, under a new type."""
    sources = node.all_input_nodes
    if len(sources) != 1 or has_several(node) or not traits_of(node).moves:
        return False
    return tensor_of(node).numel() >= tensor_of(sources[0]).numel()


def _calls(node: fx.Node, flowing: set[fx.Node]) -> bool:
    """Whether a reshard sends anything, in either direction."""
    reshard = reshards_of(node)[0][1]
    return reshard.forward.sends or (node in flowing and reshard.adjoint.sends)


def _is_vary(node: fx.Node) -> bool:
    return reshards_of(node)[0][1].kind is Change.VARY


def reshard_lines(node: fx.Node, flowing: set[fx.Node], reduced: Reduced | None) -> tuple[str, ...]:
    """`all_gather tp`, the bytes forward, and what the backward does."""
    pairs = reshards_of(node)
    reshard = pairs[0][1]
    axes = product(reshard.axes)
    lines = [f"{reshard.kind} {axes}"]
    if reshard.forward.sends:
        lines[0] = f"{reshard.forward.op} {axes}"
        lines.append(bytes_text(sent_forward(pairs)))
    if reshard.route is not None:
        lines[0] += f", {reshard.kind}"
        lines[-1] += " expected"
    if reshard.reads is not None:
        lines[0] += f", {reshard.kind}"
    if len(pairs) > 1:
        lines.insert(1, f"{len(pairs)} parameters")
    again = [pairs[place] for place in regathered(node)] if flowing else []
    if again:
        lines.append(f"again backward: {bytes_text(sent_forward(again))}")
    back = [pairs[place] for place, item in items_of(node).items() if item in flowing]
    if back and back[0][1].adjoint.sends:
        lines.append(_gradient_text(back, reduced))
    return tuple(lines)


def _gradient_text(pairs: list[Pair], reduced: Reduced | None) -> str:
    assert reduced is not None, "a gradient flows in a program alone"
    back = pairs[0][1].adjoint
    axes = product(back.axes)
    return f"grad: {back.op} {axes} {bytes_text(sent_backward(pairs, reduced))}"


def _reduced(leaf: fx.Node, flowing: set[fx.Node], reduced: Reduced | None) -> tuple[str, ...]:
    """How the gradient of a leaf is reduced, by the reshards that are not drawn."""
    lines = []
    for user in leaf.users:
        if is_reshard(user) and _is_vary(user) and user in flowing:
            pair = next(pair for pair in reshards_of(user) if pair[0] is leaf)
            lines.append(_gradient_text([pair], reduced))
    return tuple(lines)


def without_unread(picture: Picture) -> Picture:
    """The picture without leaves that nothing reads."""
    readers = picture.out_of()
    gone: dict[str, str | None] = {
        name: None
        for name, box in picture.boxes.items()
        if box.kind in (BoxKind.BUFFER, BoxKind.CONSTANT) and not readers[name]
    }
    return picture.renamed(gone)
