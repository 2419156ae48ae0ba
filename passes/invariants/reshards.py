"""What holds once the reshards stand between the ops."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shardlang.cost.paths import minor_in
from shardlang.ir.collective import ReduceOp
from shardlang.ir.graph import is_reshard, reshard_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Axis, joined
from shardlang.ir.program import apply_reshards
from shardlang.ir.reshard import Change, Reshard
from shardlang.passes.invariants.invariant import View, invariant


@invariant
def operands_in_place(view: View) -> Iterator[str]:
    """Every op gets its operands, and every reshard its value, in the layout that it reads."""
    for node, sharding in view.sharded:
        for index, operand in enumerate(view.operands(node)):
            have, want = view.made(operand).unlabelled(), sharding.operand(index)
            if have != want:
                yield f"{node}: operand {index} `{operand}` is {have}, not {want}"
    for node, value, reshard in single_reshards(view):
        if view.made(value).unlabelled() != reshard.src.unlabelled():
            yield f"{node}: {reshard} starts from {view.made(value)}"


def single_reshards(view: View) -> Iterator[tuple[fx.Node, fx.Node, Reshard]]:
    """(node, value, reshard) of every reshard that stands alone."""
    for node in view.reshards:
        if node.target is not apply_reshards:
            value = node.args[0]
            assert isinstance(value, fx.Node)
            yield node, value, reshard_of(node)


@invariant
def results_settled(view: View) -> Iterator[str]:
    """No result is partial, and a buffer's new value lies as the buffer does."""
    leaves = {leaf.name: node for node, leaf in view.graph.placeholders()}
    for result, node in zip(view.graph.results, view.graph.result_nodes, strict=True):
        if node is None:
            continue
        layout = view.made(node)
        if layout.partial:
            yield f"result `{result.name}` is {layout}"
        if result.kind is ResultKind.MUTATION:
            buffer = view.made(leaves[result.name]).unlabelled()
            if layout.unlabelled() != buffer:
                yield f"the new value of `{result.name}` is {layout}, the buffer {buffer}"


@invariant
def extremes_reduced(view: View) -> Iterator[str]:
    """A maximum or minimum over a split dim is read by its reduction alone."""
    for node, sharding in view.sharded:
        if sharding.rule.reduce is ReduceOp.SUM or not sharding.inner_axes():
            continue
        for user in node.users:
            if not is_reshard(user) or reshard_of(user).reduce != sharding.rule.reduce:
                yield f"{user} reads `{node}` before it is reduced"


@invariant
def reshards_change_one_thing(view: View) -> Iterator[str]:
    """A reshard changes its own axes, each removed or added as the minor-most of its dim."""
    for node, _, reshard in single_reshards(view):
        if reshard.route is not None or reshard.reduce is not ReduceOp.SUM:
            continue
        moved = {
            axis
            for axis in view.graph.mesh.axes
            if _place(reshard.src, axis) != _place(reshard.dst, axis)
        }
        if not moved <= set(reshard.axes):
            others = ", ".join(axis.name for axis in joined(sorted(moved - set(reshard.axes))))
            yield f"{node}: {reshard} moves {others} too"
        if reshard.kind not in (Change.PERMUTE, Change.ALL_TO_ALL) and len(reshard.axes) == 1:
            yield from _minor_most(node, reshard, reshard.axes[0])


def _place(layout: Layout, axis: Axis) -> tuple[int | None, bool]:
    return layout.dim_of(axis), axis in layout.partial


def _minor_most(node: fx.Node, reshard: Reshard, axis: Axis) -> Iterator[str]:
    for layout in (reshard.src, reshard.dst):
        dim = layout.dim_of(axis)
        if dim is not None and not minor_in(layout.dims[dim], axis):
            yield f"{node}: {reshard} moves `{axis}`, not the minor-most of {layout.dims[dim]}"
