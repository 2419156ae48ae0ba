"""write_update: what is gathered after the update, of parameters whose value is kept gathered.

The optimizer has changed this device's part of each. Here the parts of all devices are gathered
into the values, by the calls that the forward program holds (`held`), bucket by bucket: the next
one is in flight while the one before it is written.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import fx

from shardlang.ir.graph import (
    held_of,
    held_values,
    is_held,
    items_of,
    laid_out_from,
    reshards_of,
)
from shardlang.ir.node import Moves, NodeInfo, info, layout_of, set_info
from shardlang.ir.program import LocalProgram
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.step import UpdateProgram, apply_collective, apply_collectives
from shardlang.passes.step.schedule import start_early
from shardlang.passes.step.steps_back import is_bundle


def write_update(program: LocalProgram, trained: Collection[str]) -> UpdateProgram:
    """The gathers after an update of some parameters, by name."""
    return _Gathers(program, trained).run()


class _Gathers:
    def __init__(self, program: LocalProgram, trained: Collection[str]) -> None:
        self.program, self.graph, self.trained = program, fx.Graph(), trained
        self.edit, self.further = Rewriter(self.graph), held_values(program.graph)
        self.values: dict[fx.Node, fx.Node] = {}
        self.made: dict[fx.Node, fx.Node] = {}
        self.types: dict[fx.Node, torch.dtype] = {}

    def run(self) -> UpdateProgram:
        """Write the graph: the values and the parts come in, and the values are written to."""
        inputs = self.program.graph.find_nodes(op="placeholder")
        pairs = zip(inputs, self.program.leaves, strict=True)
        held = {node: leaf for node, leaf in pairs if leaf.name in self.trained and leaf.gathered}
        self.types = {node: leaf.dtype for node, leaf in held.items()}
        for node, leaf in held.items():
            self.values[node] = self.graph.placeholder(node.name)
            set_info(self.values[node], replace(info(node), layout=leaf.gathered))
        for node in held:
            self.made[node] = self.graph.placeholder(f"{node.name}_part")
            set_info(self.made[node], info(node))
        for node in self.program.graph.nodes:
            if is_held(node):
                self._gather(node)
        self.graph.output(())
        parts = self.graph.find_nodes(op="placeholder")[len(held) :]
        start_early(self.graph, self.program.mesh, parts, self.program.step)
        self.graph.lint()
        return UpdateProgram(self.program.mesh, self.graph, tuple(x.name for x in held.values()))

    def _gather(self, node: fx.Node) -> None:
        """The gathers of one call, those alone whose values are read."""
        pairs = [(held_of(x), reshard) for x, reshard in reshards_of(node)]
        items = [(i, x) for i, x in sorted(items_of(node).items()) if pairs[i][0] in self.made]
        if not items:
            return
        given = [(self.made[pairs[i][0]], pairs[i][1].forward) for i, _ in items]
        moves = Moves(node.name, tuple(i for i, _ in items))
        change, dtype = pairs[0][1].kind.value, self.types[self._leaf_of(items[0][1])]
        record = replace(info(node), held=False, change=change, moves=moves, dtype=dtype)
        if not is_bundle(node):
            made = self.edit.add(apply_collective, given[0], record=record, name=node.name)
            self._keep(node, made)
            return
        xs, collectives = zip(*given, strict=True)
        made = self.edit.add(apply_collectives, (xs, collectives), record=record, name=node.name)
        for place, (_, item) in enumerate(items):
            known = replace(info(item), held=False)
            self._keep(item, self.edit.add(operator.getitem, (made, place), record=known))

    def _keep(self, node: fx.Node, made: fx.Node) -> None:
        """Write a value to its place, once it is gathered over all axes of its storage."""
        self.made[node] = made
        if node in self.further:
            return
        leaf = self._leaf_of(node)
        record = NodeInfo(info(node).value, info(node).module, layout=layout_of(node))
        self.edit.add(torch.ops.aten.copy_.default, (self.values[leaf], made), record=record)

    def _leaf_of(self, node: fx.Node) -> fx.Node:
        while node.op != "placeholder":
            source = laid_out_from(node)
            assert source is not None, f"{node} is not gathered of a parameter"
            node = source
        return node
