"""The calls that a device makes for the nodes of a step program, as the eager executor does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx

from shardlang.cost.effects import Call
from shardlang.ir.collective import Collective
from shardlang.ir.device_values import at_device
from shardlang.ir.experts.row_exchange import router_at
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.step import collectives_of, is_bucket, is_collective, routed_by
from shardlang.runtime.collectives import Sent, connected, run_together
from shardlang.runtime.groups import Connection, Group, between, members
from shardlang.runtime.lower import lower
from shardlang.runtime.moves import Move, keep
from shardlang.runtime.routes import carry
from shardlang.runtime.transport import Wire


class _Silent:
    """A process group in whose calls nothing arrives, and its calls."""

    def wait(self) -> None:
        """A call is done at once."""

    def _called(self, *args: object) -> _Silent:
        return self

    allreduce = alltoall_base = _allgather_base = _reduce_scatter_base = _called


class _Unconnected(Connection):
    """A process group of nobody."""

    def __init__(self) -> None:
        self.process_group, self.name = _Silent(), ""


class Site:
    """A device that sends nothing, in the groups that it would have."""

    def __init__(self, mesh: Mesh, coord: Coord, backend: str) -> None:
        self.mesh, self.coord, self.backend = mesh, dict(coord), backend
        self.device = torch.device("cpu")
        self._rank = mesh.device(coord)

    def of(self, axes: Iterable[Axis]) -> Group:
        """The devices that it talks to along some axes."""
        group = members(self.mesh, between(self.mesh, axes), self._rank)
        if group.size == 1:
            return group
        return replace(group, backend=self.backend, connection=_Unconnected())


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of an operand in the arguments of a call."""

    index: int

    def __repr__(self) -> str:
        return f"%{self.index}"


class StepCalls:
    """The calls of one device."""

    def __init__(self, mesh: Mesh, coord: Coord, backend: str) -> None:
        self.site = Site(mesh, coord, backend)
        self._where = tuple(coord.items()), mesh, backend
        self._moves: dict[Collective, Move] = {}

    def does_nothing(self, node: fx.Node) -> bool:
        """Whether a collective moves nothing here; its values are then those that it is given."""
        pairs = collectives_of(node)
        return routed_by(node) is None and all(self._move(c) is keep for _, c in pairs)

    def of(self, node: fx.Node) -> tuple[Call, list[fx.Node]]:
        """The call of a node, and its operands."""
        if is_collective(node):
            return self._collective(node)
        operands: list[fx.Node] = []

        def here(value: object) -> object:
            if isinstance(value, fx.Node):
                operands.append(value)
                return _Slot(len(operands) - 1)
            return at_device(value, self.site.coord)

        args = _mapped((node.args, node.kwargs), here)
        assert callable(node.target)
        return Call(partial(_run, node.target, args), (node.target, repr(args))), operands

    def _move(self, collective: Collective) -> Move:
        if collective not in self._moves:
            self._moves[collective] = lower(collective, self.site)
        return self._moves[collective]

    def _collective(self, node: fx.Node) -> tuple[Call, list[fx.Node]]:
        pairs, by = collectives_of(node), routed_by(node)
        values, ways = [x for x, _ in pairs], tuple(c for _, c in pairs)
        if by is not None:
            return Call(partial(_routed, ways[0], self.site), (ways, self._where)), [*values, by]
        actions = [connected(self._move(c)) for c in ways]
        key = ways, is_bucket(node), self._where
        if is_bucket(node):
            return Call(lambda *xs: run_together(actions, xs), key), values
        return Call(actions[0], key), values


def _mapped(value: object, change: Callable[[object], object]) -> object:
    """Arguments, each changed."""
    if isinstance(value, tuple):
        return tuple([_mapped(one, change) for one in value])
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(one, change) for one in (value.start, value.stop, value.step)))
    return change(value)


def _run(target: Callable[..., object], given: object, *operands: object) -> object:
    made = _mapped(given, lambda one: operands[one.index] if isinstance(one, _Slot) else one)
    assert isinstance(made, tuple)
    args, kwargs = made
    return target(*args, **kwargs)


def _routed(collective: Collective, site: Site, x: Tensor, by: Tensor) -> Tensor:
    """Rows on a route, by the groups that they belong to."""
    assert collective.route is not None
    exchange = router_at(collective.route.at(site.coord), site.device).exchange(by)
    group = site.of(collective.axes)
    return Sent(carry(collective, group, exchange, x, ""), Wire(group))(x)
