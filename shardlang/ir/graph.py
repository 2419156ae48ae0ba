"""The graph that the passes work on: an fx graph whose nodes know how they are split."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx

from shardlang.ir.dims import DimGraph
from shardlang.ir.experts.strategies import Strategies
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, Result
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import info
from shardlang.ir.pipeline.split import Split
from shardlang.ir.records import Weighed
from shardlang.ir.reshard import Reshard, apply_reshard, apply_reshards
from shardlang.ir.rule import Sharding
from shardlang.ir.step_options import NO_OPTIONS, StepOptions


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
        self.source: str = info(node).source if node is not None else ""
        self.module: str = info(node).module if node is not None else ""


@dataclass(slots=True)
class GraphInfo:
    """What passes find out about a graph as a whole.

    Attributes:
        seconds: pass to the seconds that it took.
        layouts: node name to the layout of its value before the rewrite.
        strategies: what each strategy of each region of experts would move.
        refusals: why experts are gathered for want of another strategy.
        checks: the model's lines of the checks on data that are dropped.
        weighed: what chains of ops were weighed at.
        draw_orders: random op to the order in memory of what it draws for, in the model.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    strategies: list[Strategies] = field(default_factory=list)
    refusals: list[ShardError] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    weighed: list[Weighed] = field(default_factory=list)
    draw_orders: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class ShardGraph:
    """An fx graph with a mesh, leaves, results, and a `NodeInfo` on every node.

    Attributes:
        fast_random: shards draw from streams of their own, instead of all drawing the whole.
        weighs: what propagation leaves open is weighed over chains of ops.
        step: the options of the passes on the step program.
        split: the stages into which the model is split, if it is.
        joined: the dimension graph, from `bind_rules` until `lower` changes the ops.
    """

    mesh: Mesh
    graph: fx.Graph
    leaves: list[Leaf]
    results: list[Result]
    data_axes: frozenset[Axis] = frozenset()
    loss: str | None = None
    fast_random: bool = False
    weighs: bool = True
    step: StepOptions = NO_OPTIONS
    split: Split | None = None
    info: GraphInfo = field(default_factory=GraphInfo)
    joined: DimGraph | None = None

    @property
    def dims(self) -> DimGraph:
        """The dimension graph."""
        assert self.joined is not None, "the dims of the ops are not joined, or no longer"
        return self.joined

    @property
    def output(self) -> fx.Node:
        """The output node."""
        node: fx.Node = next(iter(reversed(self.graph.nodes)))
        return node

    @property
    def result_nodes(self) -> list[fx.Node | None]:
        """The nodes of the output tuple (None for a result that is not a tensor)."""
        returned = self.output.args[0]
        assert isinstance(returned, (tuple, list))
        return [node if isinstance(node, fx.Node) else None for node in returned]

    def ops(self) -> Iterator[fx.Node]:
        """Nodes that have a `Sharding`: leaves and op calls, in graph order."""
        return (node for node in self.graph.nodes if info(node).sharding is not None)

    def placeholders(self) -> Iterator[tuple[fx.Node, Leaf]]:
        """Every placeholder with its leaf, in graph order."""
        return zip(self.graph.find_nodes(op="placeholder"), self.leaves, strict=True)


Pair = tuple[fx.Node, Reshard]
"""A value, and the reshard that changes its layout."""


def is_reshard(node: fx.Node) -> bool:
    """Whether the node is a change of layout."""
    return node.op == "call_function" and node.target in (apply_reshard, apply_reshards)


def reshard_of(node: fx.Node) -> Reshard:
    """The reshard of a reshard node."""
    reshard = node.args[1]
    assert isinstance(reshard, Reshard)
    return reshard


def reshards_of(node: fx.Node) -> list[Pair]:
    """(value, reshard) of every change of layout that a reshard node makes."""
    values, reshards = node.args[:2]
    if node.target is apply_reshard:
        values, reshards = (values,), (reshards,)
    assert isinstance(values, (tuple, list)) and isinstance(reshards, (tuple, list))
    return list(zip(values, reshards, strict=True))


def reshard_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """The reshard nodes of a graph, in order."""
    return (node for node in graph.nodes if is_reshard(node))


def items_of(node: fx.Node) -> dict[int, fx.Node]:
    """The value of every change of layout that a reshard node makes and something reads."""
    if node.target is apply_reshard:
        return {0: node}
    return {place: user for user in node.users if isinstance(place := user.args[1], int)}


def regathered(node: fx.Node) -> dict[int, fx.Node]:
    """Those of the values that a backward gathers again."""
    return {place: item for place, item in items_of(node).items() if info(item).regather}


def held_values(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The gathered value of every leaf, or gathered value, that is gathered after the update."""
    found = {}
    for node in reshard_nodes(graph):
        pairs = reshards_of(node)
        found.update({held_of(pairs[i][0]): x for i, x in items_of(node).items() if info(x).held})
    return found


def held_of(node: fx.Node) -> fx.Node:
    """The leaf, or the value gathered of one, that a held gather reads as it lies or varied."""
    while node.op != "placeholder" and not info(node).held:
        source = laid_out_from(node)
        assert source is not None, f"{node} is not made of a leaf by changes of layout"
        node = source
    return node


def is_held(node: fx.Node) -> bool:
    """Whether the values of a reshard node are at hand as what it reads."""
    return is_reshard(node) and any(info(x).held for x in items_of(node).values())


def is_item(node: fx.Node) -> bool:
    """Whether the node picks one result of an op with several."""
    return node.op == "call_function" and node.target is operator.getitem


def laid_out_from(node: fx.Node) -> fx.Node | None:
    """The value whose layout a node states or changes; of a bucket its items do. None of others."""
    if node.target is constrain or node.target is apply_reshard:
        return node.all_input_nodes[0]
    if is_item(node) and is_reshard(node.all_input_nodes[0]):
        place = node.args[1]
        assert isinstance(place, int)
        return reshards_of(node.all_input_nodes[0])[place][0]
    return None


def read_by(node: fx.Node) -> list[fx.Node]:
    """The values that a node is made of; what a bucket makes is made of one of its values alone."""
    source = laid_out_from(node)
    return [source] if source is not None and is_item(node) else node.all_input_nodes


def producer(node: fx.Node) -> tuple[fx.Node, int]:
    """The op that made a value, and which of its results it is."""
    if not is_item(node):
        return node, 0
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    results = info(source).value
    assert isinstance(results, (list, tuple)), f"{source} has one result"
    return source, sum(result is not None for result in results[:index])


def sharding_of(node: fx.Node) -> Sharding:
    """The sharding of an op node."""
    sharding = info(node).sharding
    assert isinstance(sharding, Sharding)
    return sharding


def result_layout(node: fx.Node) -> Layout:
    """The layout in which a value comes out of the op that made it."""
    if is_reshard(node):
        return reshard_of(node).dst
    source, index = producer(node)
    sharding = sharding_of(source)
    return sharding.result(index)


def describe(node: fx.Node) -> str:
    """A node as a person would name it: op and module."""
    name, module = op_name(node.target), info(node).module
    return f"`{name}` in `{module}`" if module else f"`{name}`"


def op_name(target: object) -> str:
    """An op as a person would name it: `linear`, `add.Scalar`, `mine::product`."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    name = str(name).removesuffix(".default")
    space = getattr(target, "namespace", "aten")
    return name if space in ("aten", "shardlang") else f"{space}::{name}"
