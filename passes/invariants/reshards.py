"""What holds once the reshards stand between the ops."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shardlang.cost.paths import minor_in
from shardlang.ir.collective import ReduceOp
from shardlang.ir.graph import is_step, step_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Axis
from shardlang.ir.program import apply_steps
from shardlang.ir.reshard import Change, Reshard
from shardlang.passes.invariants.invariant import View, invariant


@invariant
def operands_in_place(view: View) -> Iterator[str]:
    """Every op gets its operands, and every reshard its value, in the layout that it reads."""
    for node, sharding in view.sharded:
        for index, operand in enumerate(view.operands.get(node, [])):
            have, want = view.made(operand).unlabelled(), sharding.operand(index)
            if have != want:
                yield f"{node}: operand {index} `{operand}` is {have}, not {want}"
    for node, value, step in single_steps(view):
        if view.made(value).unlabelled() != step.src.unlabelled():
            yield f"{node}: {step} starts from {view.made(value)}"


def single_steps(view: View) -> Iterator[tuple[fx.Node, fx.Node, Reshard]]:
    """(node, value, step) of every reshard that stands alone."""
    for node in view.steps:
        if node.target is not apply_steps:
            value = node.args[0]
            assert isinstance(value, fx.Node)
            yield node, value, step_of(node)


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
            if not is_step(user) or step_of(user).reduce != sharding.rule.reduce:
                yield f"{user} reads `{node}` before it is reduced"


@invariant
def steps_change_one_thing(view: View) -> Iterator[str]:
    """A reshard changes its own axes, each removed or added as the minor-most of its dim."""
    for node, _, step in single_steps(view):
        if step.route is not None or step.reduce is not ReduceOp.SUM:
            continue
        moved = {
            axis
            for axis in view.graph.mesh.axes
            if _place(step.src, axis) != _place(step.dst, axis)
        }
        if not moved <= set(step.axes):
            others = ", ".join(axis.name for axis in sorted(moved - set(step.axes)))
            yield f"{node}: {step} moves {others} too"
        if step.kind not in (Change.PERMUTE, Change.ALL_TO_ALL) and len(step.axes) == 1:
            yield from _minor_most(node, step, step.axes[0])


def _place(layout: Layout, axis: Axis) -> tuple[int | None, bool]:
    return layout.dim_of(axis), axis in layout.partial


def _minor_most(node: fx.Node, step: Reshard, axis: Axis) -> Iterator[str]:
    for layout in (step.src, step.dst):
        dim = layout.dim_of(axis)
        if dim is not None and not minor_in(layout.dims[dim], axis):
            yield f"{node}: {step} moves `{axis}`, not the minor-most of {layout.dims[dim]}"
