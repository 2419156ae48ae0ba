"""The calls that a device makes for the nodes of a step program, as the eager executor does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx

from shardlang.cost.effects import Call
from shardlang.cost.expected import expected
from shardlang.ir.collective import Collective, Kind
from shardlang.ir.device_values import at_device
from shardlang.ir.experts.row_exchange import RowExchange
from shardlang.ir.factor import split
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.spare import reduces_in_place
from shardlang.ir.step import (
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    routed_by,
    started_by,
)
from shardlang.runtime.collectives import (
    Sent,
    Started,
    StartedTogether,
    connected,
    run_together,
    waited,
)
from shardlang.runtime.groups import Connection, Group, between, members
from shardlang.runtime.lower import lower
from shardlang.runtime.moves import Move, keep
from shardlang.runtime.routes import carry
from shardlang.runtime.transport import Wire


class _Work:
    """A call in which nothing arrives; it holds its tensors, as calls do."""

    def __init__(self, *held: object) -> None:
        self._held = held

    def wait(self) -> None:
        """It is done at once."""


class _Silent:
    """A process group that sends nothing."""

    allreduce = alltoall_base = _allgather_base = _reduce_scatter_base = send = recv = _Work


class _Unconnected(Connection):
    """A process group of nobody."""

    def __init__(self) -> None:
        self.process_group, self.name = _Silent(), ""


def unconnected() -> Connection:
    """That of a group in which nothing is sent."""
    return _Unconnected()


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
        """Whether a collective, or the start or wait of one, moves nothing here.

        What it gives is then what it is given.
        """
        sent = started_by(node) if is_wait(node) else node
        if not is_collective(sent) or routed_by(sent) is not None:
            return False
        return all(self._move(c) is keep for _, c in collectives_of(sent))

    def of(self, node: fx.Node) -> tuple[Call, list[fx.Node]]:
        """The call of a node, and its operands."""
        if is_collective(node):
            return self._collective(node)
        if is_wait(node):
            return Call(waited, waited), [started_by(node)]
        operands: list[fx.Node] = []

        def here(value: object) -> object:
            if isinstance(value, fx.Node):
                operands.append(value)
                return _Slot(len(operands) - 1)
            return at_device(value, self.site.coord)

        args = _mapped((node.args, node.kwargs), here)
        assert callable(node.target)
        run, key = partial(_run, node.target, args), (node.target, repr(args))
        return Call(run, key, partial(expected, node, self.site.coord)), operands

    def _move(self, collective: Collective) -> Move:
        if collective not in self._moves:
            self._moves[collective] = lower(collective, self.site)
        return self._moves[collective]

    def _collective(self, node: fx.Node) -> tuple[Call, list[fx.Node]]:
        pairs, by = collectives_of(node), routed_by(node)
        values, ways = [x for x, _ in pairs], tuple(c for _, c in pairs)
        if by is not None:
            return Call(partial(_routed, ways[0], self.site), (ways, self._where)), [*values, by]
        aside, spare = is_start(node), reduces_in_place(node)
        actions = [connected(self._move(c), aside, spare) for c in ways]
        key = ways, is_bucket(node), aside, spare, self._where
        if is_bucket(node):
            together = StartedTogether if aside else run_together
            return Call(lambda *xs: together(actions, xs), key), values
        return Call(partial(Started, actions[0]) if aside else actions[0], key), values


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
    """Rows on a route, of which data decides how many go where: equal shares are expected."""
    group = site.of(collective.axes)
    rows = [layout.local_shape(site.coord)[0] for layout in (collective.src, collective.dst)]
    out, back = rows if collective.kind is Kind.DISPATCH else reversed(rows)
    order = torch.empty(out, dtype=torch.int64)
    shares = ([split(n, group.size, i)[1] for i in range(group.size)] for n in (out, back))
    exchange = RowExchange(order, *shares)
    return Sent(carry(collective, group, exchange, x, ""), Wire(group))(x)
