"""split_microbatches: from a step typed along an axis of microbatches to one computed over time.

Only sums cross the axis. A sum that is made of inputs alone, such as the number of tokens that
count, is made for all microbatches first (`early`). A sum that nothing of the backward reads, such
as the loss, is made last. Every other one would need all microbatches at once, and is refused. The
backward may sum gradients of leaves alone; what is reduced once for each step, and not for each
microbatch, goes to `reduce`: everything but gradients that are stored split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from shardlang.ir.accumulated import AccumulatedStep, Piece
from shardlang.ir.collective import Collective, Kind, ReduceOp
from shardlang.ir.graph import ShardError, is_item
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind, Stored
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, layout_of, set_info, tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import (
    StepProgram,
    apply_collective,
    collectives_of,
    is_bucket,
    is_collective,
)


def split_microbatches(step: StepProgram, axis: Axis, loss: str) -> AccumulatedStep:
    """Split a step.

    Args:
        step: forward and backward, from the loss alone.

    Raises:
        ShardError: SH0409, an op needs all microbatches at once.
    """
    return _Split(step, axis, loss).run()


class _Split:
    def __init__(self, step: StepProgram, axis: Axis, loss: str) -> None:
        self.step, self.axis, self.graph = step, axis, step.graph
        self.edit = Rewriter(step.graph)
        self.leaves = {leaf.node: leaf for leaf in step.leaves}
        results, self.gradients = step.returned
        self.summed: set[fx.Node] = set()
        named = dict(zip((r.name for r in step.results), results, strict=True))
        self.loss = named[loss]
        result = next(r for r in step.results if r.name == loss)
        self.result = replace(result, dtype=tensor_of(self.loss).dtype)
        self.written = [(r, named[r.name]) for r in step.results if r.kind is ResultKind.MUTATION]

    def run(self) -> AccumulatedStep:
        """Strip the axis off all collectives, and put every value where it belongs."""
        sums = [node for node in self.graph.nodes if self._crosses(node)]
        self.summed = set(sums)
        for node in sums:
            self._strip(node)
        forward = [x for node in sums if not info(node).backward for x in _values(node)]
        first = [x for x in forward if not self._is_trained(x)]
        last = [x for x in forward if x not in set(first)]
        after = _after(last)
        self._check_last(last, after)
        reduced = _after([x for node in sums if info(node).backward for x in _values(node)])
        self._once(reduced)
        reduce, carried = self._reduce(reduced)
        totals = {node: f"total {i}" for i, node in enumerate((*first, *last))}
        early = self._piece(first, {}, [totals[x] for x in first])
        finish = self._piece([self.loss], totals, ["loss"])
        main = self._main(first, last, totals, carried)
        return AccumulatedStep(self.axis, early, main, finish, reduce, self.result)

    def _crosses(self, node: fx.Node) -> bool:
        if not is_collective(node):
            return False
        return any(c.sends and self.axis in c.axes for _, c in collectives_of(node))

    def _strip(self, node: fx.Node) -> None:
        """Leave the sum over the microbatches out of a collective."""
        made = []
        for _, collective in collectives_of(node):
            if collective.kind is not Kind.ALL_REDUCE or collective.reduce is not ReduceOp.SUM:
                raise _refused(node, f"takes part in a {collective.kind.value} over microbatches")
            made.append(_without(collective, self.axis))
        stripped = tuple(made) if is_bucket(node) else made[0]
        self.edit.become(node, node.target, (node.args[0], stripped, *node.args[2:]), {})

    def _is_trained(self, node: fx.Node) -> bool:
        """Whether a value is made of parameters."""
        leaves = (self.leaves.get(x.name) for x in _before([node]))
        return any(leaf is not None and leaf.kind is LeafKind.PARAM for leaf in leaves)

    def _check_last(self, last: list[fx.Node], after: set[fx.Node]) -> None:
        for node in {*last, *after}:
            if any(info(user).backward for user in node.users):
                raise _refused(node, "is read by the backward, and made of all microbatches")
        for result, node in self.written:
            if node in after or self.axis in layout_of(node).sharded:
                raise _refused(node, f"writes `{result.name}` from all microbatches")
        if self.loss not in after and self.loss not in last:
            raise _refused(self.loss, "is no sum over the rows of the batch")

    # the backward

    def _once(self, reduced: set[fx.Node]) -> None:
        """Let what no microbatch has a part of count for the first one alone.

        The backward is linear in its gradients, so what follows a sum over the microbatches may as
        well be done to every part, if all else that it reads is the same for all microbatches.
        """
        own = {leaf.node for leaf in self.step.leaves if self.axis in leaf.at_rest.sharded}
        apart = _after(x for x in self.graph.find_nodes(op="placeholder") if x.name in own)
        cotangents = [x for x in self.graph.find_nodes(op="placeholder") if info(x).backward]
        gradients, kept = _after(cotangents), dict[fx.Node, fx.Node]()
        for node in [n for n in self.graph.nodes if n in reduced]:
            if is_item(node) and is_collective(node.all_input_nodes[0]):
                continue
            for x in node.all_input_nodes if node not in self.summed else ():
                if x in gradients and x not in reduced:
                    node.replace_input_with(x, self._first_alone(x, kept))
                elif x in apart and x not in gradients:
                    what = "takes a gradient that is summed over all microbatches"
                    raise _refused(node, what)
        self.gradients = [x if x in reduced else self._first_alone(x, kept) for x in self.gradients]

    def _first_alone(self, x: fx.Node, kept: dict[fx.Node, fx.Node]) -> fx.Node:
        if x not in kept:
            layout = info(x).layout
            layout = layout if isinstance(layout, Layout) else Layout.whole(())
            first = Collective(Kind.FIRST, (self.axis,), layout, layout)
            record = replace(info(x), layout=layout, backward=True, random=False)
            kept[x] = self.edit.add(apply_collective, (x, first), record=record, before=x.next)
        return kept[x]

    def _reduce(self, reduced: set[fx.Node]) -> tuple[Piece, dict[str, fx.Node]]:
        """The graph of what is reduced once, and the parts of gradients that are summed for it."""
        moved = self._moved(reduced)
        graph, made, carried = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
        sources = [x for n in moved for x in n.all_input_nodes if x not in moved]
        for x in dict.fromkeys([*sources, *(x for x in self.gradients if x not in moved)]):
            carried[f"part {len(carried)}"] = x
            made[x] = graph.placeholder(f"part_{len(made)}")
            set_info(made[x], info(x))
        for node in moved:
            made[node] = graph.node_copy(node, made.__getitem__)
            set_info(made[node], info(node))
        graph.output(tuple(made[x] for x in self.gradients))
        return Piece(graph, tuple(carried), self.step.gradients), carried

    def _moved(self, reduced: set[fx.Node]) -> dict[fx.Node, None]:
        """What is done once for all microbatches: reductions that lead to nothing else, in order.

        Gradients that are stored split are scattered for every microbatch.
        """
        stays = self._stored()
        found: set[fx.Node] = set()
        ends = set(self.gradients)
        for node in reversed(self.graph.nodes):
            readers = [user for user in node.users if user.op != "output"]
            if node in stays or not all(user in found for user in readers):
                continue
            if (readers or node in ends) and (_is_reduction(node) or _joins(node, reduced)):
                found.add(node)
        return {node: None for node in self.graph.nodes if node in found}

    def _stored(self) -> set[fx.Node]:
        """What leads to gradients that are stored split."""
        leaf_of = {leaf.name: leaf for leaf in self.step.leaves}
        pairs = zip(self.step.gradients, self.gradients, strict=True)
        apart = [
            x for name, x in pairs
            if leaf_of[name].store and leaf_of[name].splits is not Stored.OPTIMIZER
        ]  # fmt: skip
        found = _before(apart)
        return found | {x for node in found if is_collective(node) for x in _values(node)}

    # the forward

    def _piece(self, ends: list[fx.Node], totals: dict[fx.Node, str], gives: list[str]) -> Piece:
        """The graph that makes some values of leaves and totals."""
        graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
        needed = _before(ends, set(totals))
        takes = []
        for node in self.graph.nodes:
            if node not in needed or node.op == "output":
                continue
            leaf = self.leaves.get(node.name) if node.op == "placeholder" else None
            if leaf is None and node not in totals:
                continue
            takes.append(totals[node] if leaf is None else leaf.name)
            if leaf is not None and totals and self.axis in leaf.layout.sharded:
                raise _refused(node, "is read by what is made of all microbatches")
            made[node] = graph.placeholder(node.name)
            set_info(made[node], info(node))
        for node in self.graph.nodes:
            if node in needed and node not in made and node.op == "call_function":
                made[node] = graph.node_copy(node, made.__getitem__)
                set_info(made[node], info(node))
        graph.output(tuple(made[x] for x in ends))
        return Piece(graph, tuple(takes), tuple(gives))

    def _main(
        self,
        first: list[fx.Node],
        last: list[fx.Node],
        totals: dict[fx.Node, str],
        carried: dict[str, fx.Node],
    ) -> StepProgram:
        leaves = list(self.step.leaves)
        cotangent = next(n for n in self.graph.find_nodes(op="placeholder") if info(n).backward)
        for i, node in enumerate(first):
            with self.graph.inserting_before(cotangent):
                total = self.graph.placeholder(f"total_{i}")
            set_info(total, info(node))
            self.edit.redirect(node, total)
            value = tensor_of(node)
            layout = layout_of(node)
            leaves.append(Leaf(totals[node], LeafKind.INPUT, total.name, value.dtype, layout))
        results = [
            Result(totals[x], ResultKind.OUTPUT, tensor_of(x).dtype, layout_of(x)) for x in last
        ]
        output = self.graph.output_node()
        given = tuple(last), tuple(x for _, x in self.written)
        output.args = (((*given[0], *given[1]), tuple(carried.values())),)
        _drop_unread(self.graph)
        self.graph.lint()
        return StepProgram(
            self.step.mesh, self.graph, tuple(leaves),
            (*results, *(r for r, _ in self.written)), self.step.cotangents, tuple(carried),
        )  # fmt: skip


def _without(collective: Collective, axis: Axis) -> Collective:
    """An all-reduce without one axis."""
    axes = tuple(one for one in collective.axes if one != axis)
    src = replace(collective.src, partial=collective.src.partial - {axis})
    kind = collective.kind if axes else Kind.NOTHING
    return replace(collective, kind=kind, axes=axes, src=src)


def _is_reduction(node: fx.Node) -> bool:
    """Whether a node reduces or scatters gradients, or is one of those that come of it."""
    if is_item(node):
        return is_collective(node.all_input_nodes[0])
    if not info(node).backward or not is_collective(node):
        return False
    kinds = {collective.kind for _, collective in collectives_of(node)}
    return kinds <= {Kind.NOTHING, Kind.ALL_REDUCE, Kind.REDUCE_SCATTER}


def _joins(node: fx.Node, reduced: set[fx.Node]) -> bool:
    """Whether a node adds up gradients that are summed over microbatches."""
    return node in reduced and node.target is torch.ops.aten.add.Tensor


def _values(node: fx.Node) -> list[fx.Node]:
    """The values that a collective node gives."""
    return list(node.users) if is_bucket(node) else [node]


def _after(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and everything that is made of them."""
    found, todo = set(nodes), list(nodes)
    while todo:
        for user in todo.pop().users:
            if user not in found and user.op != "output":
                found.add(user)
                todo.append(user)
    return found


def _before(nodes: Iterable[fx.Node], until: set[fx.Node] | None = None) -> set[fx.Node]:
    """The nodes, and everything that they are made of, up to some nodes."""
    ends = until or set()
    found, todo = set(nodes), list(nodes)
    while todo:
        node = todo.pop()
        for source in () if node in ends else node.all_input_nodes:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


def _drop_unread(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not info(node).random:
            graph.erase_node(node)


def _refused(node: fx.Node, what: str) -> ShardError:
    return ShardError(
        "SH0409",
        f"`{node.name}` {what}, so the batch cannot be accumulated",
        node=node,
        help="leave `accumulate` out, or let the model compute this row by row",
    )
