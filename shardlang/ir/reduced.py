"""The types in which gradients are reduced."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info, tensor_of
from shardlang.ir.precision import wider
from shardlang.ir.program import LocalProgram

SUMS = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)
"""What adds up what the devices hold."""


class Reduced:
    """What the gradients of a program are sent in: those of parameters may be reduced in a wider
    type than they have."""

    def __init__(self, program: LocalProgram) -> None:
        self._wide = program.step.precision.reduce
        self._params = _of_parameters(program) if self._wide is not None else set()

    def dtype(self, value: fx.Node, adjoint: Collective) -> torch.dtype:
        """The type in which the gradient of a value is sent by a collective."""
        own = tensor_of(value).dtype
        reduced = adjoint.kind in SUMS and value in self._params
        return wider(own, self._wide) if reduced else own

    def bytes_of(self, value: fx.Node, adjoint: Collective) -> int:
        """The bytes of one number of it."""
        return self.dtype(value, adjoint).itemsize


def _of_parameters(program: LocalProgram) -> set[fx.Node]:
    """The values that follow from parameters and buffers alone."""
    inputs = {leaf.node for leaf in program.leaves if leaf.kind is LeafKind.INPUT}
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in inputs:
            found.add(node)
        sources = node.all_input_nodes if node.op == "call_function" else []
        if sources and found.issuperset(sources) and not info(node).random:
            found.add(node)
    return found
