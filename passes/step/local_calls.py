"""The call of a node as each device makes it, and the ops of its forward and backward.

Devices whose shards differ in size, or whose offsets do, make calls that differ in numbers alone:
then one device's ops stand for all, with a function of the device in the place of each number that
differs (`numbers`). Where more than numbers differ, data decides a size, or the kind of device does
what is to be done, as for attention, the op is not written out but recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from shardlang.ir.compat import map_leaves
from shardlang.ir.device_values import differ, specialise
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord, Mesh
from shardlang.ir.node import info, is_ordered, layout_of
from shardlang.ir.step import Operand
from shardlang.passes.step.dropouts import written_out_dropout
from shardlang.passes.step.numbers import NotNumbers, unify
from shardlang.rules.attention import FUSED
from shardlang.vjp.op_call import NotTraced, OpCall, Shard
from shardlang.vjp.trace import ops_of
from shardlang.vjp.traced import Traced


def operands_of(node: fx.Node) -> list[fx.Node]:
    """The operands of a node, slot by slot; one that is given twice is there twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


@dataclass(frozen=True, slots=True)
class Wants:
    """Which gradients a node is asked for: operands by slot, and results among the tensors."""

    wanted: tuple[int, ...]
    given: tuple[int, ...]


class Calls:
    """Traces the nodes of one program; equal calls, of any program, once."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.coords = mesh, list(mesh.coords())

    def of(self, node: fx.Node, wants: Wants) -> Traced | None:
        """The ops of a node; None where it is to be recorded."""
        operands = operands_of(node)
        if info(node).random:
            return written_out_dropout(node, wants.wanted)
        if node.target in FUSED or any(is_ordered(n) for n in (node, *operands)):
            return None
        try:
            return self._traced_of(node, operands, wants)
        except (NotTraced, NotNumbers):
            return None

    def _traced_of(self, node: fx.Node, operands: list[fx.Node], wants: Wants) -> Traced:
        alike = not differ((node.args, node.kwargs)) and all(map(_is_even, operands))
        coords = self.coords[:1] if alike else self.coords
        calls = [self._call(node, operands, wants, coord) for coord in coords]
        keys = [call.key() for call in calls]
        made = {key: ops_of(call) for key, call in zip(keys, calls, strict=True)}
        traces = [one for one in made.values() if one is not None]
        if len(traces) < len(made):
            raise NotTraced
        if len(traces) == 1:
            return traces[0]
        places = {key: place for place, key in enumerate(made)}
        return unify(traces, [places[key] for key in keys], node, self.mesh)

    def _call(self, node: fx.Node, operands: list[fx.Node], wants: Wants, coord: Coord) -> OpCall:
        slots = map(Operand, range(len(operands)))
        args, kwargs = map_leaves(
            specialise((node.args, node.kwargs), coord),
            lambda one: next(slots) if isinstance(one, fx.Node) else one,
        )
        assert callable(node.target)
        shards = tuple(shard_at(operand, coord) for operand in operands)
        return OpCall(node.target, args, kwargs, shards, wants.wanted, wants.given)


def _is_even(node: fx.Node) -> bool:
    """Whether the shards of a value have one shape on all devices."""
    return all(dim.even for dim in layout_of(node).dims)


def shard_at(node: fx.Node, coord: Coord) -> Shard:
    """The shape and dtype of a value on a device."""
    layout, value = info(node).layout, info(node).value
    assert isinstance(layout, Layout) and isinstance(value, Tensor), f"{node} is not one tensor"
    return Shard(layout.local_shape(coord), value.dtype)
