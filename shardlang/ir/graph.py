"""The graph that the passes work on: an fx graph whose nodes know how they are split."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.rule import Sharding
from shardlang.ir.steps import Step, apply_step, apply_steps


def constrain(x: Tensor) -> Tensor:
    """Identity whose layout is stated: a value, an output, or a parameter taken from storage."""
    return x


class ShardError(ValueError):
    """A program that cannot be sharded as stated: one finding, with the model's place.

    Attributes:
        code: the diagnostic code.
        help: what to do.
        source: the model's line, `file.py:12`.
        module: the module's dotted name.
    """

    def __init__(
        self, code: str, message: str, *, node: fx.Node | None = None, help: str = ""
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.help = code, message, help
        self.source: str = node.meta.get("source", "") if node is not None else ""
        self.module: str = node.meta.get("module", "") if node is not None else ""


@dataclass(frozen=True, slots=True)
class Stated:
    """A layout that the spec states for a leaf or a value.

    Attributes:
        layout: the stated layout; open dims are whole in it.
        open: dims that propagation decides.
        place: `file.shard:7` of the statement.
    """

    layout: Layout
    open: frozenset[int] = frozenset()
    place: str = ""


@dataclass(slots=True)
class GraphLeaf:
    """A placeholder of the graph.

    Attributes:
        store: axes over which the tensor is also split at rest.
        regather: gather it again for the backward instead of keeping it.
    """

    name: str
    kind: str
    node: fx.Node
    dtype: torch.dtype
    trainable: bool
    aliases: tuple[str, ...] = ()
    store: tuple[Axis, ...] = ()
    regather: bool = False


@dataclass(slots=True)
class GraphResult:
    """An element of the output tuple."""

    name: str
    kind: str


@dataclass(slots=True)
class ShardGraph:
    """An fx graph with a mesh, leaves, results, and a `Sharding` on every op.

    Node meta: `val` (global fake tensors), `module`, `source`, `stated` (a `Stated`), `sharding`,
    `diff` (whether a gradient flows through the value), and from `type_gradients` on `layout`.

    Attributes:
        fast_random: shards draw from streams of their own, instead of all drawing the whole.
    """

    mesh: Mesh
    graph: fx.Graph
    leaves: list[GraphLeaf]
    results: list[GraphResult]
    data_axes: frozenset[Axis] = frozenset()
    loss: str | None = None
    fast_random: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> fx.Node:
        """The output node."""
        node: fx.Node = next(iter(reversed(self.graph.nodes)))
        return node

    @property
    def result_nodes(self) -> list[fx.Node | None]:
        """The nodes of the output tuple (None for a result that is no tensor)."""
        return list(self.output.args[0])  # type: ignore[arg-type]

    def ops(self) -> Iterator[fx.Node]:
        """Nodes that have a `Sharding`: leaves and op calls, in graph order."""
        return (node for node in self.graph.nodes if "sharding" in node.meta)

    def leaf_of(self) -> dict[fx.Node, GraphLeaf]:
        """Placeholder to leaf."""
        return {leaf.node: leaf for leaf in self.leaves}


def is_step(node: fx.Node) -> bool:
    """Whether the node is a change of layout."""
    return node.op == "call_function" and node.target in (apply_step, apply_steps)


def step_of(node: fx.Node) -> Step:
    """The step of a step node."""
    step = node.args[1]
    assert isinstance(step, Step)
    return step


def add_step_node(
    graph: fx.Graph, target: Any, args: tuple[Any, ...], name: str, before: fx.Node
) -> fx.Node:
    """Add a step node before a node, named after what it does."""
    with graph.inserting_before(before):
        return graph.create_node("call_function", target, args, name=name)


def is_item(node: fx.Node) -> bool:
    """Whether the node picks one result of an op with several."""
    return node.op == "call_function" and node.target is operator.getitem


def producer(node: fx.Node) -> tuple[fx.Node, int]:
    """The op that made a value, and which of its results it is."""
    if not is_item(node):
        return node, 0
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    raw = source.meta["val"]
    return source, sum(v is not None for v in list(raw)[:index])


def sharding_of(node: fx.Node) -> Sharding:
    """The sharding of an op node."""
    sharding = node.meta["sharding"]
    assert isinstance(sharding, Sharding)
    return sharding


def home(node: fx.Node) -> Layout:
    """The layout in which a value comes out of the op that made it."""
    if is_step(node):
        return step_of(node).dst
    source, index = producer(node)
    sharding = sharding_of(source)
    return sharding.result(index)


def fake(node: fx.Node) -> torch.Tensor:
    """The global fake tensor of a value."""
    val = node.meta["val"]
    assert isinstance(val, torch.Tensor), f"{node} is not one tensor"
    return val


def describe(node: fx.Node) -> str:
    """A node as a person would name it: op and module."""
    name, module = op_name(node.target), node.meta.get("module", "")
    return f"`{name}` in `{module}`" if module else f"`{name}`"


def op_name(target: Any) -> str:
    """An op as a person would name it: `linear`, `add.Scalar`, `mine::product`."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = str(name).removesuffix(".default")
    space = getattr(target, "namespace", "aten")
    return name if space in ("aten", "shardlang") else f"{space}::{name}"
