"""The reference of a program whose shards draw apart: the parts that they draw, put together.

One device would draw other numbers, so the traced graph cannot be the reference. Instead every
random op that the program splits is computed part by part, each part once, from the stream of the
devices that hold it; all else is the traced graph. What is proven is that every device draws the
part that it should, that its replicas draw the same, and that loss and gradients follow from these
draws.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from shardlang.ir.arguments import Args, tensors_in
from shardlang.ir.device_values import PartNumber, specialise
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord, Mesh
from shardlang.ir.program import LocalProgram
from shardlang.ir.rewriter import copy_graph
from shardlang.ir.shards import peers, shard_of
from shardlang.rules.call import Call
from shardlang.rules.streams import key_node, stream_key
from shardlang.runtime.whole import put_shard


class Parts:
    """A random op of the program on whole operands: part by part, then put together."""

    def __init__(self, node: fx.Node, mesh: Mesh) -> None:
        parts = parts_of(node)
        assert parts is not None, f"{node} draws no part"
        self.node, self.sharding, self.axes = node, sharding_of(node), parts.axes
        self.coords = peers({axis.name: 0 for axis in mesh.axes}, parts.axes)
        self.__name__ = f"parts_of_{node.name}"

    def __call__(self, key: Tensor, *operands: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The op on whole operands."""
        made = [self._part(key, operands, at) for at in self.coords]
        shards = zip(*map(tensors_in, made), strict=True)
        joined = [self._joined(each, i) for i, each in enumerate(shards)]
        return joined[0] if isinstance(made[0], Tensor) else tuple(joined)

    def _part(self, key: Tensor, operands: Sequence[Tensor], at: Coord) -> object:
        """What the devices at one coordinate along the axes draw."""
        shards = iter(
            shard_of(x, self._along(self.sharding.operand(i)), at) for i, x in enumerate(operands)
        )
        args, kwargs = fx.map_arg(
            specialise((self.node.args, self.node.kwargs), at),
            lambda node: key if node.target is stream_key else next(shards),
        )
        assert callable(self.node.target)
        return self.node.target(*args, **kwargs)

    def _joined(self, shards: Sequence[Tensor], index: int) -> Tensor:
        layout = self._along(self.sharding.result(index))
        whole = shards[0].new_empty(layout.shape)
        for shard, at in zip(shards, self.coords, strict=True):
            put_shard(whole, shard, layout, at)
        return whole

    def _along(self, layout: Layout) -> Layout:
        """A layout as far as it makes the parts."""
        dims: list[DimLayout] = [dim.only(self.axes) for dim in layout.dims]
        return Layout(tuple(dims))


def parts_of(node: fx.Node) -> PartNumber | None:
    """The parts that a node draws, where shards draw apart."""
    given: Args = node.args
    return next((arg for arg in given if isinstance(arg, PartNumber)), None)


def with_program_draws(graph: fx.Graph, program: LocalProgram) -> tuple[fx.Graph, int]:
    """A traced graph with the program's draws in the place of its own, and how many these are.

    Nodes keep their names. Without such draws the graph is returned as it is.
    """
    drawn = {node.name: node for node in program.graph.nodes if parts_of(node) is not None}
    if not drawn:
        return graph, 0
    made, _ = copy_graph(graph)
    named = {node.name: node for node in made.nodes}
    key = key_node(made)
    for name, node in drawn.items():
        own = named[name]
        own.args, own.kwargs = (key, *Call(own).operands), {}
        own.target = Parts(node, program.mesh)
    return made, len(drawn)
