"""A step as one device runs it: what no text for all devices says is written out.

Recorded are ops that autograd takes otherwise on a GPU than on a CPU, attention above all, and ops
that differ between devices in more than numbers. On one device of a known kind, and for its own
shards, both are known: the ops that autograd would take there stand in the place of `record`, and
those of the gradients in the place of `pull`. What the backward reads are values of the step.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx
from torch.fx.node import Target

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import AttentionKernels, tree_map_only
from shardlang.ir.graph import is_item, op_name
from shardlang.ir.mesh import Coord
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import Operand, StepProgram, has_records, pull, record
from shardlang.vjp.by_itself import by_itself
from shardlang.vjp.recorded import Recorded, cotangents_of, recorded_by, shard_at
from shardlang.vjp.traced import Traced


def written_for(
    program: StepProgram,
    coord: Coord,
    device: torch.device,
    kernels: AttentionKernels | None = None,
) -> StepProgram:
    """The step on the device at a coordinate; its values keep their names.

    Args:
        kernels: those of attention that are allowed; None for those that are now.
    """
    if not has_records(program):
        return program
    return by_itself(lambda: _Writing(program, coord, device, kernels).run())


class _Writing:
    """The graph of one device while it is written.

    Attributes:
        env: by node of the program, its node here.
        inner: by recorded op that is written out, the same for the nodes of its trace.
    """

    def __init__(
        self,
        program: StepProgram,
        coord: Coord,
        device: torch.device,
        kernels: AttentionKernels | None,
    ) -> None:
        self.program, self.coord, self.device, self.kernels = program, coord, device, kernels
        self.graph = fx.Graph()
        self.edit = Rewriter(self.graph)
        self.env: dict[fx.Node, fx.Node] = {}
        self.inner: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
        self.traced: dict[fx.Node, Traced] = {}

    def run(self) -> StepProgram:
        """Copy every node; the ops of a recorded one stand in its place."""
        for node in self.program.graph.nodes:
            self._write(node)
        for node in reversed(self.graph.nodes):
            if is_item(node) and not node.users:
                self.graph.erase_node(node)
        return replace(self.program, graph=self.graph)

    def _write(self, node: fx.Node) -> None:
        if node in self.env or (is_item(node) and node.all_input_nodes[0] in self.traced):
            return
        if node.target is record:
            recorded = Recorded.of(node)
            traced = recorded.ops(self.coord, self.device, self.kernels)
            if traced is not None:
                self.traced[node] = traced
                self._forward(node, recorded, traced)
                return
        if node.target is pull and recorded_by(node) in self.traced:
            self._backward(node, recorded_by(node))
            return
        self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
        set_info(self.env[node], info(node))
        assert self.env[node].name == node.name, f"{node.name} has become {self.env[node]}"

    def _forward(self, node: fx.Node, recorded: Recorded, traced: Traced) -> None:
        xs = [self.env[x] for x in recorded.operands]
        env = self.inner[node] = dict(zip(traced.operands, xs, strict=True))
        items = _items(node)
        named = {one: items[i] for i, one in enumerate(traced.results) if one and i in items}
        if traced.whole:
            self._itself(node, recorded, traced, named)
        for one in traced.forward:
            self._emit(one, env, node, named)
        self.env.update((item, env[result]) for result, item in named.items())

    def _itself(
        self, node: fx.Node, recorded: Recorded, traced: Traced, named: Mapping[fx.Node, fx.Node]
    ) -> None:
        """The op as it is: its backward reads no more than operands and results."""
        xs, env = [self.env[x] for x in recorded.operands], self.inner[node]
        args, kwargs = recorded.at(self.coord)
        args, kwargs = tree_map_only(Operand, lambda one: xs[one.index], (args, kwargs))
        first, call = traced.results[0], (recorded.target, args, kwargs)
        if first is not None and not traced.several:
            env[first] = self._add(*call, node, named.get(first))
            return
        made = self._add(*call, node)
        for place, one in enumerate(traced.results):
            if one is not None:
                env[one] = self._add(operator.getitem, (made, place), {}, node, named.get(one))

    def _backward(self, node: fx.Node, source: fx.Node) -> None:
        traced, recorded, items = self.traced[source], Recorded.of(source), _items(node)
        env = {**self.inner[source], **self._cotangents(node, source)}
        wanted = {item: traced.gradients[recorded.wanted[i]] for i, item in items.items()}
        named = {gradient: item for item, gradient in wanted.items() if gradient is not None}
        for one in traced.backward:
            self._emit(one, env, node, named)
        for i, item in items.items():
            gradient, place = wanted[item], recorded.wanted[i]
            if gradient is not None:
                self.env[item] = env[gradient]
                continue
            operand = recorded.operands[place]
            self.env[item] = self._zeros(operand, env[traced.operands[place]], node)

    def _cotangents(self, node: fx.Node, source: fx.Node) -> dict[fx.Node, fx.Node]:
        """The cotangents that the ops take; zeros for a result that no gradient reaches."""
        traced, recorded, items = self.traced[source], Recorded.of(source), _items(source)
        places = [place for place, one in enumerate(traced.results) if one is not None]
        given = zip(recorded.given, cotangents_of(node), traced.cotangents, strict=True)
        found = {}
        for i, cotangent, placeholder in given:
            result = traced.results[places[i]]
            assert result is not None
            here = self.inner[source][result]
            known = None if cotangent is None else self.env[cotangent]
            found[placeholder] = known or self._zeros(items.get(places[i]), here, node)
        return found

    def _zeros(self, value: fx.Node | None, here: fx.Node, node: fx.Node) -> fx.Node:
        """Zeros like a value, which they do not read if its shape is known.

        The forward keeps what the backward from all results reads. One from some results alone has
        more zeros; that a value which nobody reads gets none is the same for all.
        """
        shard = None if value is None else shard_at(value, self.coord)
        if shard is None:
            return self._add(torch.ops.aten.zeros_like.default, (here,), {}, node)
        named = {"dtype": shard.dtype, "device": torch.device("cpu")}
        return self._add(torch.ops.aten.zeros.default, (list(shard.shape),), named, node)

    def _emit(
        self,
        one: fx.Node,
        env: dict[fx.Node, fx.Node],
        node: fx.Node,
        named: Mapping[fx.Node, fx.Node],
    ) -> None:
        """Write an op of a trace in the place of a node."""
        args, kwargs = fx.map_arg((one.args, one.kwargs), env.__getitem__)
        env[one] = self._add(one.target, args, kwargs, node, named.get(one))

    def _add(
        self,
        target: Target,
        args: Args,
        kwargs: Kwargs,
        node: fx.Node,
        like: fx.Node | None = None,
    ) -> fx.Node:
        """Add a call in the place of a node; it gives the value of `like`, if of any."""
        if like is not None:
            return self.edit.add(target, args, kwargs, record=info(like), name=like.name)
        known = info(node)
        origin = NodeInfo(module=known.module, source=known.source, backward=known.backward)
        called = op_name(target).partition(".")[0].strip("_")
        return self.edit.add(target, args, kwargs, record=origin, name=f"{node.name}_{called}")


def _items(node: fx.Node) -> dict[int, fx.Node]:
    """By place among the results of a node, what picks it."""
    return {place: user for user in node.users if isinstance(place := user.args[1], int)}
