"""The layouts that propagation dropped: where its neighbours pull an op in different directions.

An op is split over an axis in one way. A neighbour that the axis splits along another of the dims
they share has lost: a reshard stands between the two. Nothing is recorded for this while layouts
flow; it is read off the dimension graph and the layouts at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import producer, result_layout, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.rule import Sharding
from shardlang.passes.propagate.flow import Flow


@dataclass(frozen=True, slots=True)
class Conflict:
    """A layout that an op did not take from a neighbour.

    Attributes:
        neighbour: the op that has it.
        dim: the dim of the value between the two that the axis splits there.
        reads: whether the neighbour reads what the op makes, not the other way round.
    """

    neighbour: fx.Node
    dim: int
    reads: bool


def conflicts(flow: Flow, node: fx.Node, axis: Axis) -> Iterator[Conflict]:
    """The layouts along one axis that an op did not take, those of its operands first."""
    sharding = sharding_of(node)
    if axis not in sharding.axes() and axis not in sharding.linear:
        return
    for slot, value in enumerate(flow.dims.operands[node]):
        layout, source = result_layout(value), producer(value)[0]
        dim = layout.dim_of(axis)
        asked = dim is not None and not flow.is_storage(node, value, axis)
        if asked and _differs(sharding, sharding.read_operand(slot, layout), axis):
            yield Conflict(source, dim or 0, False)
    for reader, slot, result in flow.dims.uses[node]:
        layout = sharding_of(reader).operand(slot)
        dim = layout.dim_of(axis)
        if dim is not None and _differs(sharding, sharding.read_result(result, layout), axis):
            yield Conflict(reader, dim, True)


def _differs(sharding: Sharding, found: Mapping[str, DimLayout], axis: Axis) -> bool:
    """Whether the axis splits no factor of an op as is suggested."""
    asked = {name: dim.only((axis,)) for name, dim in found.items() if axis in dim.axes}
    return all(sharding.factors[name].only((axis,)) != dim for name, dim in asked.items())
