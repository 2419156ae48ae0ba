"""From one half of a step, or its update, to a picture with one box per op.

What the backward reads of the forward is named in its boxes (`reads`) and not drawn as an arrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from shardlang.cost.ring import sent_bytes
from shardlang.graph.homes import homes_of
from shardlang.graph.picture import Arrow, Box, BoxKind, Picture, common_module, seen_from
from shardlang.graph.read import is_light, type_lines
from shardlang.ir.graph import is_item, op_name
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind
from shardlang.ir.mesh import product
from shardlang.ir.node import info, results_of
from shardlang.ir.step import (
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    pull,
    record,
    started_by,
)
from shardlang.ir.views import gives_view
from shardlang.plan.flights import Flight, flights_of
from shardlang.plan.text import bytes_text


@dataclass(slots=True)
class HalfReader:
    """Reads some nodes of a step, in their order.

    Attributes:
        leaves: the leaves, by the name of their node.
        results: what is drawn as a result, with its node.
        again: the nodes that compute a value of the forward again.
        cotangents: the gradients that a half is given, by the name of their node.
        adjoints: the layouts of gradients, by the name of their node.
    """

    nodes: Sequence[fx.Node]
    leaves: dict[str, Leaf]
    results: Sequence[tuple[Result, fx.Node]] = ()
    again: frozenset[str] = frozenset()
    cotangents: frozenset[str] = frozenset()
    adjoints: dict[str, tuple[torch.dtype, Layout]] = field(default_factory=dict)
    _inside: set[fx.Node] = field(init=False)
    _homes: dict[fx.Node, fx.Node] = field(init=False)
    _params: dict[fx.Node, list[fx.Node]] = field(init=False)
    _flights: dict[fx.Node, Flight] = field(init=False)

    def __post_init__(self) -> None:
        self._inside = {node for node in self.nodes if self._is_known(node)}
        self._flights = flights_of(self.nodes)
        params = [x for x in self.nodes if x.op == "placeholder" and self._is_param(x)]
        self._homes = homes_of(params)
        self._params = {}
        for leaf, op in self._homes.items():
            self._params.setdefault(op, []).append(leaf)

    def _is_param(self, node: fx.Node) -> bool:
        return node.name in self.leaves and self.leaves[node.name].kind is LeafKind.PARAM

    def _is_known(self, node: fx.Node) -> bool:
        """Whether a node is no value that another graph gives."""
        known = node.name in self.leaves or node.name in self.cotangents
        return node.op != "placeholder" or known

    def shows(self, node: fx.Node) -> bool:
        """Whether a node has a box in this picture."""
        return node in self._inside and not self.is_through(node) and node not in self._homes

    def picture(self) -> Picture:
        """One box for each leaf, op, collective and result."""
        made = Picture()
        for node in self.nodes:
            if not self.shows(node):
                continue
            made.add(self.box(node))
            for operand in node.all_input_nodes:
                source = self.drawn(operand)
                if source in self._inside and source not in self._homes:
                    made.connect(Arrow(source.name, node.name, self._said(operand, source)))
        for result, node in self.results:
            title = result.name if result.kind is ResultKind.OUTPUT else f"new {result.name}"
            made.add(Box(f"result {result.name}", BoxKind.OUTPUT, "", (title, *self._type(node))))
            made.connect(Arrow(self.drawn(node).name, f"result {result.name}"))
        return made

    def is_through(self, node: fx.Node) -> bool:
        """Whether a node is not drawn, its value going straight on."""
        if node.op == "placeholder" or not node.all_input_nodes:
            return False
        if is_item(node) or is_wait(node) or gives_view(node.target):
            return True
        return is_collective(node) and not any(c.sends for _, c in collectives_of(node))

    def drawn(self, node: fx.Node) -> fx.Node:
        """The node that is drawn for one that is not."""
        while self.is_through(node):
            node = source_of(node)
        return node

    def box(self, node: fx.Node) -> Box:
        """What is drawn for a node."""
        if node.op == "placeholder":
            return self._leaf(node)
        if is_collective(node):
            return self._collective(node)
        name, again = called(node), node.name in self.again
        light = info(node).backward or is_light(node)
        box = Box(node.name, BoxKind.OP, info(node).module, (name,), name, light, (name,))
        params = tuple(self._leaf(leaf).lines for leaf in self._params.get(node, ()))
        return replace(box, params=params, reads=tuple(self._read(node)), again=again)

    def _leaf(self, node: fx.Node) -> Box:
        leaf = self.leaves.get(node.name)
        if leaf is None:
            return Box(node.name, BoxKind.INPUT, "", ("gradient", *self._type(node)))
        of_module = leaf.kind is not LeafKind.INPUT
        module, _, short = leaf.name.rpartition(".") if of_module else ("", "", leaf.name)
        return Box(node.name, BoxKind(leaf.kind.value), module, (short, *self._type(node)))

    def _collective(self, node: fx.Node) -> Box:
        """`all_gather tp`, how many values, the bytes, and what is computed while it is sent."""
        pairs = [(x, c) for x, c in collectives_of(node) if c.sends]
        first, known = pairs[0][1], info(node)
        title = f"{first.op} {product(first.axes)}"
        title += f", {first.kind.value}" if first.route or first.reads else ""
        lines = [title, *([f"{len(pairs)} values"] if len(pairs) > 1 else [])]
        if known.dtype is not None:
            size = sum(sent_bytes(c, known.dtype.itemsize) for _, c in pairs)
            lines.append(bytes_text(size) + (" expected" if first.route else ""))
        module = self._place(node)
        box = Box(node.name, BoxKind.RESHARD, module, tuple(lines), first.op)
        said, again = tuple(self._beside(node, module)), self._is_again(node)
        return replace(box, reads=tuple(self._read(node)), flight=said, again=again)

    def _is_again(self, node: fx.Node) -> bool:
        """Whether a node makes a value of the forward once more, or starts to."""
        return node.name in self.again or any(x.name in self.again for x in node.users)

    def _place(self, node: fx.Node) -> str:
        """The module of a collective: that of what makes the summands, or of parameters."""
        sources = [self.drawn(x) for x, _ in collectives_of(node)]
        _, first = collectives_of(node)[0]
        sums = first.src.partial & set(first.axes)
        if not sums and any(x.op != "placeholder" for x in sources):
            return info(node).module
        return common_module([info(x).module for x in sources]) or info(node).module

    def _beside(self, node: fx.Node, module: str) -> Iterator[str]:
        """Where a collective starts, and what waits for it, if something is computed between."""
        if not is_start(node):
            return
        flight = self._flights[node]
        if not flight.beside:
            return
        yield f"beside {len(flight.beside)} ops"
        yield f"starts {_named('after', flight.after, module)}"
        yield f"waited for {_named('before', flight.before, module)}"

    def _read(self, node: fx.Node) -> Iterator[str]:
        """What a node reads of another half, each once."""
        outside = [x for x in node.all_input_nodes if self.drawn(x) not in self._inside]
        yield from dict.fromkeys(map(self._name, outside))

    def _name(self, node: fx.Node) -> str:
        """A value of another half in two words at most; of a gathered parameter its own."""
        while self.is_through(node):
            node = source_of(node, exactly=True)
        sent = [x for x, _ in collectives_of(node)] if is_collective(node) else []
        if sent and sent[0].op == "placeholder":
            node = sent[0]
        if node.op == "placeholder" and node.name in self.leaves:
            return ".".join(self.leaves[node.name].name.split(".")[-2:])
        last = info(node).module.rpartition(".")[2]
        name = called(node)
        return f"{last}.{name}" if last and not last.isdigit() else name

    def _said(self, operand: fx.Node, source: fx.Node) -> tuple[str, ...]:
        """What an arrow says: the type, but for one that stands for several values."""
        return () if is_collective(source) and is_bucket(source) else self._type(operand)

    def _type(self, node: fx.Node) -> tuple[str, ...]:
        """The printed type of a value as far as it is known, and its local shape if it differs."""
        value, layout = info(node).value, info(node).layout
        if isinstance(value, torch.Tensor) and isinstance(layout, Layout):
            return type_lines(value.dtype, layout.in_place())
        if node.name in self.adjoints:
            dtype, layout = self.adjoints[node.name]
            return type_lines(dtype, layout.in_place())
        return ()


def called(node: fx.Node) -> str:
    """The short name of what a node calls; of a collective its op."""
    if is_collective(node):
        return collectives_of(node)[0][1].op
    if node.target is record:
        return op_name(node.args[0]).partition(".")[0]
    return "recorded backward" if node.target is pull else op_name(node.target).partition(".")[0]


def adjoint_types(
    forward: Sequence[fx.Node], adjoints: Mapping[str, str]
) -> dict[str, tuple[torch.dtype, Layout]]:
    """The dtypes and layouts of gradients, by the name of their node."""
    found: dict[str, tuple[torch.dtype, Layout]] = {}
    for node in forward:
        layout, values = info(node).layout, results_of(info(node).value)
        if node.name in adjoints and isinstance(layout, Layout) and len(values) == 1:
            found[adjoints[node.name]] = values[0].dtype, layout.dual()
    return found


def source_of(node: fx.Node, exactly: bool = False) -> fx.Node:
    """What a node that is not drawn passes on.

    Args:
        exactly: of a bucket that is drawn, the value that has become this one.
    """
    if is_item(node):
        bucket, place = node.all_input_nodes[0], node.args[1]
        bucket = started_by(bucket) if is_wait(bucket) else bucket
        if is_collective(bucket) and isinstance(place, int):
            x, collective = collectives_of(bucket)[place]
            return bucket if collective.sends and not exactly else x
    return node.all_input_nodes[0]


def _named(word: str, node: fx.Node | None, module: str) -> str:
    if node is None:
        return "first of all" if word == "after" else "last of all"
    return f"{word} {called(node)}{seen_from(module, info(node).module)}"
