"""insert_reshards: between what an op needs and what it gets, the cheapest reshards.

All versions of one value form a tree: a user takes the version that is cheapest to come from, so a
gather is made once for all that need it. Maxima and minima over a split dim are reduced where they
are made. A reshard from or to a layout of which devices hold more than at both ends of the change
is marked as part of a full gather. Invariant after the pass: every operand of every op has the
layout that the op needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import fx

from shardlang.cost.paths import NoPath, find_path, widest_between
from shardlang.ir.collective import ReduceOp
from shardlang.ir.graph import (
    ShardError,
    ShardGraph,
    constrain,
    describe,
    is_item,
    is_reshard,
    reshard_of,
    result_layout,
    sharding_of,
)
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import ResultKind, Stored
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.program import apply_reshard
from shardlang.ir.records import FullGather
from shardlang.ir.reshard import Change, Reshard
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.reshards import (
    extremes_reduced,
    operands_in_place,
    reshards_change_one_thing,
    results_settled,
)
from shardlang.passes.invariants.shardings import layouts_recorded
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.rules.call import Call


@dataclass(frozen=True, slots=True)
class InsertReshards:
    """Insert reshard nodes wherever a layout changes."""

    name: str = "insert_reshards"
    establishes: ClassVar[tuple[Invariant, ...]] = (
        operands_in_place, results_settled, extremes_reduced, reshards_change_one_thing,
    )  # fmt: skip
    retires: ClassVar[tuple[Invariant, ...]] = (layouts_recorded,)

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Insert all reshards.

        Raises:
            ShardError: a layout cannot be reached.
        """
        versions = Versions(graph)
        for node in list(graph.graph.nodes):
            if node.op == "output":
                finish(graph, node, versions)
            elif info(node).sharding is not None and node.op != "placeholder":
                feed(node, versions)
                reduce_extremes(graph, node)
        for node, leaf in graph.placeholders():
            if leaf.regather:
                mark_regathered(node)
            if leaf.splits is not Stored.VALUE:
                mark_held(node)
        return graph


@dataclass(slots=True)
class Versions:
    """Every layout in which a value is at hand."""

    graph: ShardGraph
    known: dict[fx.Node, list[tuple[Layout, fx.Node]]] = field(default_factory=dict)

    def reach(self, value: fx.Node, goal: Layout, before: fx.Node) -> fx.Node:
        """The value in a layout, from the cheapest version of it.

        Raises:
            ShardError: no reshards lead there.
        """
        have = self.known.setdefault(value, [(result_layout(value), value)])
        sources = tuple(layout for layout, _ in have)
        try:
            index, path, _ = find_path(sources, goal, info(value).differentiable)
        except NoPath as error:
            raise ShardError(
                "SH0405",
                f"{describe(before)}: {error}",
                node=before,
                help="state the value whole where it is needed, and report this with the spec",
            ) from error
        made = have[index][1]
        widest = widest_between(path)
        for reshard in path:
            made = insert_reshard(self.graph, made, reshard, before)
            if widest is not None and widest in (reshard.src, reshard.dst):
                gather = FullGather(path[0].src, widest, goal)
                set_info(made, replace(info(made), full_gather=gather))
            have.append((reshard.dst, made))
        return made


def insert_reshard(graph: ShardGraph, value: fx.Node, reshard: Reshard, before: fx.Node) -> fx.Node:
    """Add one reshard node before a node."""
    known = info(value)
    record = NodeInfo(
        known.value,
        info(before if before.op != "output" else value).module,
        info(before).source or known.source,
        differentiable=known.differentiable,
        reader=before.name,
    )
    edit = Rewriter(graph.graph)
    return edit.add(
        apply_reshard, (value, reshard), record=record, before=before, name=reshard.kind.value
    )


def feed(node: fx.Node, versions: Versions) -> None:
    """Give an op its operands in the layouts that it needs."""
    call, sharding = Call(node), sharding_of(node)
    wanted = [
        versions.reach(slot.node, sharding.operand(i), node) for i, slot in enumerate(call.slots)
    ]
    if wanted != call.operands:
        Rewriter(node.graph).become(node, *call.with_operands(wanted))


def reduce_extremes(graph: ShardGraph, node: fx.Node) -> None:
    """All-reduce a maximum or minimum over a split dim, right where it is made."""
    sharding = sharding_of(node)
    axes = tuple(sorted(sharding.inner_axes())) if sharding.rule.reduce is not ReduceOp.SUM else ()
    if not axes:
        return
    layout = sharding.result()
    reshard = Reshard(axes, layout, layout, sharding.rule.reduce)
    after = node.next
    made = insert_reshard(graph, node, reshard, after)
    set_info(made, replace(info(made), module=info(node).module))
    Rewriter(graph.graph).redirect(node, made)


def mark_regathered(node: fx.Node) -> None:
    """Mark the gathers of a stored parameter whose whole value a backward reads."""
    for user in node.users:
        if (
            is_reshard(user)
            and reshard_of(user).kind is Change.ALL_GATHER
            and read_in_backward(user)
        ):
            set_info(user, replace(info(user), regather=True))
            mark_regathered(user)


def mark_held(node: fx.Node) -> None:
    """Mark the gathers between a parameter as its state is split and as it is used."""
    for user in node.users:
        if is_reshard(user):
            set_info(user, replace(info(user), held=True))
            mark_held(user)


def read_in_backward(value: fx.Node) -> bool:
    """Whether a backward needs the value itself.

    It does where an op is not linear in the value and another operand with gradient together: the
    weight of a linear on activations, but not its bias, nor an embedding table. It may need a
    view of the value: that of a frozen weight has no gradient itself.
    """
    return any(_reads_in_backward(user, value) for user in value.users if user.op != "output")


def _reads_in_backward(user: fx.Node, value: fx.Node) -> bool:
    if is_item(user) or is_reshard(user) or user.target is constrain:
        return read_in_backward(user)
    if not info(user).differentiable:
        return sharding_of(user).rule.traits.is_view and read_in_backward(user)
    operands, linear = operands_of(user), sharding_of(user).rule.linear
    mine = {i for i, operand in enumerate(operands) if operand is value}
    others = {i for i, operand in enumerate(operands) if info(operand).differentiable} - mine
    if not all(any({i} <= group for group in linear) for i in mine) or len(mine) > 1:
        return True
    if any(not any({i, j} <= group for group in linear) for i in mine for j in others):
        return True
    return not others and len(operands) == 1 and read_in_backward(user)


def finish(graph: ShardGraph, output: fx.Node, versions: Versions) -> None:
    """Results leave whole or split, never partial; a mutated buffer in the layout of its leaf."""
    leaves = {leaf.name: node for node, leaf in graph.placeholders()}
    done: list[fx.Node | None] = []
    for result, value in zip(graph.results, graph.result_nodes, strict=True):
        if value is None:
            done.append(None)
            continue
        goal = Layout(result_layout(value).dims)
        if result.kind is ResultKind.MUTATION:
            goal = result_layout(leaves[result.name])
        done.append(versions.reach(value, goal, output))
    output.args = (tuple(done),)
