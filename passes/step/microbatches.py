"""split_microbatches: from a step typed along an axis of microbatches to one computed over time.

Only sums cross the axis. A sum that is made of inputs alone, such as the number of tokens that
count, is made for all microbatches first (`early`). A sum that nothing of the backward reads, such
as the loss, is made last. Every other one would need all microbatches at once, and is refused. The
backward may sum gradients of leaves alone; what is reduced once for each step, and not for each
microbatch, goes to `reduce`: everything but gradients that are stored split.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from shardlang.ir.accumulated import AccumulatedStep, Piece
from shardlang.ir.collective import Collective, Kind, ReduceOp
from shardlang.ir.graph import is_item
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind, Stored
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, info, layout_of, set_info, tensor_of
from shardlang.ir.precision import wider
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import (
    StepProgram,
    apply_collective,
    cast,
    collectives_of,
    is_bucket,
    is_collective,
)
from shardlang.passes.step.over_microbatches import (
    after_of,
    before_of,
    check_made_at_once,
    gathered_within,
    is_reduction,
    joins_gradients,
    refused,
    refused_reader,
    summed,
    values_of,
    without,
)
from shardlang.passes.step.pieces import Pieces
from shardlang.passes.step.unread import drop_unread


def split_microbatches(
    step: StepProgram, axis: Axis, loss: str, wide: torch.dtype | None = None
) -> AccumulatedStep:
    """Split a step.

    Args:
        step: forward and backward, from the loss alone.
        wide: the type in which narrower gradients are summed.

    Raises:
        ShardError: SH0409, an op needs all microbatches at once.
    """
    return _Split(step, axis, loss, wide).run()


class _Split:
    def __init__(self, step: StepProgram, axis: Axis, loss: str, wide: torch.dtype | None) -> None:
        self.step, self.axis, self.graph, self.wide = step, axis, step.graph, wide
        self.edit = Rewriter(step.graph)
        self.leaves = {leaf.node: leaf for leaf in step.leaves}
        results, self.gradients = step.returned
        self.summed: set[fx.Node] = set()
        self.joined: dict[fx.Node, int] = {}
        named = dict(zip((r.name for r in step.results), results, strict=True))
        self.loss = named[loss]
        result = next(r for r in step.results if r.name == loss)
        self.result = replace(result, dtype=tensor_of(self.loss).dtype)
        self.written = [(r, named[r.name]) for r in step.results if r.kind is ResultKind.MUTATION]

    def run(self) -> AccumulatedStep:
        """Strip the axis off all collectives, and put every value where it belongs."""
        self._drop_other_results()
        sums = [node for node in self.graph.nodes if self._crosses(node)]
        self.summed = set(sums)
        for node in sums:
            self._strip(node)
        forward = [x for node in sums if not info(node).backward for x in values_of(node)]
        first = [x for x in forward if not self._is_trained(x)]
        last = [x for x in forward if x not in set(first)]
        after = after_of(last)
        self._check_last(last, after)
        check_made_at_once(first, last)
        reduced = after_of([x for node in sums if info(node).backward for x in values_of(node)])
        self._once(reduced)
        reduce, carried = self._reduce(reduced)
        totals = {node: f"total {i}" for i, node in enumerate((*first, *last))}
        joins = {totals[x]: self.joined[x] for x in first if x in self.joined}
        pieces = Pieces(self.graph, self.leaves, self.axis)
        early = pieces.made_of(first, {}, [totals[x] for x in first])
        finish = pieces.made_of([self.loss], totals, ["loss"])
        main = self._main(first, last, totals, carried)
        return AccumulatedStep(
            self.axis, early, main, finish, reduce, self.result, joins, self.wide
        )

    def _drop_other_results(self) -> None:
        """What a step does not return need not be made."""
        wanted = (self.loss, *(x for _, x in self.written))
        self.graph.output_node().args = ((wanted, tuple(self.gradients)),)
        drop_unread(self.graph)

    def _crosses(self, node: fx.Node) -> bool:
        if not is_collective(node):
            return False
        return any(c.sends and self.axis in c.axes for _, c in collectives_of(node))

    def _strip(self, node: fx.Node) -> None:
        """Leave the microbatches out of a collective: what is left of it is done for each.

        A sum over them is a sum over time. What is made of inputs alone may be gathered over time
        too, where the rows of a microbatch stand together.
        """
        made = []
        for x, collective in collectives_of(node):
            stripped = None
            if collective.kind is Kind.ALL_REDUCE and collective.reduce is ReduceOp.SUM:
                stripped = without(collective, self.axis)
            elif collective.kind is Kind.ALL_GATHER and not self._is_trained(x):
                stripped = gathered_within(collective, self.axis)
            if stripped is None or (info(node).backward and stripped.kind is Kind.ALL_GATHER):
                raise refused_reader(node)
            made.append(stripped)
            if collective.kind is Kind.ALL_GATHER:
                dim, _, _ = collective.cut()
                self.joined.update(dict.fromkeys(values_of(node), dim))
        given = tuple(made) if is_bucket(node) else made[0]
        self.edit.become(node, node.target, (node.args[0], given, *node.args[2:]), {})

    def _is_trained(self, node: fx.Node) -> bool:
        """Whether a value is made of parameters."""
        leaves = (self.leaves.get(x.name) for x in before_of([node]))
        return any(leaf is not None and leaf.kind is LeafKind.PARAM for leaf in leaves)

    def _check_last(self, last: list[fx.Node], after: set[fx.Node]) -> None:
        for node in last:
            made_of = after_of([node])
            if any(info(user).backward for x in made_of for user in x.users):
                raise refused(
                    summed(node), "the backward needs this sum over all rows of the batch"
                )
        for result, node in self.written:
            if node in after or self.axis in layout_of(node).sharded:
                raise refused(node, f"`{result.name}` is written from all rows of the batch")

    # the backward

    def _once(self, reduced: set[fx.Node]) -> None:
        """Let what no microbatch has a part of count for the first one alone.

        The backward is linear in its gradients, so what follows a sum over the microbatches may as
        well be done to every part, if all else that it reads is the same for all microbatches.
        """
        own = {leaf.node for leaf in self.step.leaves if self.axis in leaf.at_rest.sharded}
        given = list(self.graph.find_nodes(op="placeholder"))
        apart = after_of([x for x in given if x.name in own], self.summed)
        cotangents = [x for x in given if info(x).backward]
        gradients, kept = after_of(cotangents), dict[fx.Node, fx.Node]()
        for node in [n for n in self.graph.nodes if n in reduced]:
            if is_item(node) and is_collective(node.all_input_nodes[0]):
                continue
            for x in node.all_input_nodes if node not in self.summed else ():
                if x in gradients and x not in reduced:
                    node.replace_input_with(x, self._first_alone(x, kept))
                elif x in apart and x not in gradients:
                    what = f"the backward of `{info(node).module or 'the model'}` needs a gradient"
                    raise refused(node, f"{what} over all rows of the batch")
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
            assert not (is_collective(x) and is_bucket(x)), f"{x} is no tensor that adds up"
            carried[f"part {len(carried)}"] = x
            made[x] = graph.placeholder(f"part_{len(made)}")
            set_info(made[x], info(x))
        for node in moved:
            made[node] = graph.node_copy(node, made.__getitem__)
            set_info(made[node], info(node))
        pairs = zip(self.step.gradients, self.gradients, strict=True)
        graph.output(tuple(self._rounded(name, made[x]) for name, x in pairs))
        return Piece(graph, tuple(carried), self.step.gradients), carried

    def _rounded(self, name: str, gradient: fx.Node) -> fx.Node:
        """A gradient of summed parts in the type of its leaf."""
        dtype = next(leaf.dtype for leaf in self.step.leaves if leaf.name == name)
        if wider(dtype, self.wide) == dtype or gradient.target is cast:
            return gradient
        record = NodeInfo(info(gradient).value, info(gradient).module, backward=True)
        return Rewriter(gradient.graph).add(cast, (gradient, dtype), record=record)

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
            moves = is_reduction(node) or node.target is cast or joins_gradients(node, reduced)
            if moves and (readers or node in ends):
                found.add(node)
        found -= {x for x in found if is_item(x) and x.all_input_nodes[0] not in found}
        return {node: None for node in self.graph.nodes if node in found}

    def _stored(self) -> set[fx.Node]:
        """What leads to gradients that are stored split."""
        leaf_of = {leaf.name: leaf for leaf in self.step.leaves}
        pairs = zip(self.step.gradients, self.gradients, strict=True)
        apart = [
            x.all_input_nodes[0] if x.target is cast else x
            for name, x in pairs
            if leaf_of[name].store and leaf_of[name].splits is not Stored.OPTIMIZER
        ]  # fmt: skip
        found = before_of(apart)
        return found | {x for node in found if is_collective(node) for x in values_of(node)}

    # the forward

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
        drop_unread(self.graph)
        self.graph.lint()
        return StepProgram(
            self.step.mesh, self.graph, tuple(leaves),
            (*results, *(r for r, _ in self.written)), self.step.cotangents, tuple(carried),
            wide=self.wide,
        )  # fmt: skip
