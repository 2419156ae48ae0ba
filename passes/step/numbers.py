"""One text for devices whose ops differ in numbers: each becomes a function of the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.utils._pytree as pytree
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.device_values import (
    ByPart,
    Combined,
    ListByPart,
    LocalIndices,
    LocalSize,
    LocalStart,
    Number,
    PartNumber,
)
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.node import info
from shardlang.vjp.traced import Traced

_T = TypeVar("_T")

_SHORT = 8
"""A list of dims is no longer; longer ones are indices, which would fill the text."""


class NotNumbers(Exception):
    """The ops of devices differ in more than numbers that follow from their shards."""


def unify(traces: Sequence[Traced], which: Sequence[int], node: fx.Node, mesh: Mesh) -> Traced:
    """One trace for all devices, from those of devices that differ.

    Args:
        which: for every device of the mesh, its trace.
        node: the node that was traced: its device-dependent arguments, and the layouts of its
            operands and results, are what a number may follow from.

    Raises:
        NotNumbers: they differ in more than numbers.
    """
    first = traces[0]
    lists = [one.nodes() for one in traces]
    if len({tuple(_heads(one)) for one in traces}) > 1:
        raise NotNumbers
    known = list(_numbers_of(node))
    where = _Where(which, list(mesh.coords()), mesh.axes, known, list(_lists_of(node)))
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for placeholder in first.given():
        env[placeholder] = graph.placeholder(placeholder.name)
    for same in zip(*lists, strict=True):
        joined: Any = _joined(_arguments(same), where)
        args, kwargs = fx.map_arg(joined, lambda n: env[n])
        env[same[0]] = graph.create_node("call_function", same[0].target, tuple(args), kwargs)
    return Traced(
        [env[n] for n in first.operands], [env[n] for n in first.cotangents],
        [n and env[n] for n in first.results],
        {i: n and env[n] for i, n in first.gradients.items()},
        [env[n] for n in first.forward], [env[n] for n in first.backward], first.several,
        first.whole,
    )  # fmt: skip


def _heads(traced: Traced) -> Iterator[object]:
    """What must be the same: the ops, and who reads whom."""
    order = {n: i for i, n in enumerate((*traced.given(), *traced.nodes()))}
    for node in traced.nodes():
        yield node.target, tuple(order[n] for n in node.all_input_nodes)
    yield tuple(None if n is None else order[n] for n in traced.results)
    yield tuple(None if n is None else order[n] for n in traced.gradients.values())
    yield len(traced.forward), traced.whole


@dataclass(frozen=True, slots=True)
class _Where:
    """Which trace stands for which device, and what is known to depend on it."""

    which: Sequence[int]
    coords: Sequence[Coord]
    axes: Sequence[Axis]
    known: Sequence[Number]
    lists: Sequence[LocalIndices]

    def number(self, values: Sequence[int]) -> Number:
        """A number that is each trace's own value on every device that it stands for."""
        wanted = [values[i] for i in self.which]
        for number in _candidates(self.known):
            if [number.at(coord) for coord in self.coords] == wanted:
                return number
        return ByPart(*self._table(wanted))

    def _table(self, wanted: Sequence[_T]) -> tuple[tuple[Axis, ...], tuple[_T, ...]]:
        """What devices have one by one, along no more axes than it depends on."""
        axes = tuple(self.axes)
        for axis in self.axes:
            fewer = tuple(other for other in axes if other != axis)
            if len(self._by_part(fewer, wanted)) == _parts(fewer):
                axes = fewer
        found = dict(self._by_part(axes, wanted))
        return axes, tuple(found[part] for part in range(_parts(axes)))

    def _by_part(self, axes: tuple[Axis, ...], wanted: Sequence[_T]) -> set[tuple[int, _T]]:
        part = PartNumber(axes)
        return {(part.at(coord), n) for coord, n in zip(self.coords, wanted, strict=True)}

    def numbers(self, values: Sequence[Sequence[int]]) -> object:
        """The same for a list of numbers."""
        wanted = [list(values[i]) for i in self.which]
        for one in self.lists:
            if [one.at(coord) for coord in self.coords] == wanted:
                return one
        if len({len(value) for value in values}) > 1:
            if max(map(len, values)) > _SHORT:
                raise NotNumbers
            return ListByPart(*self._table([tuple(one) for one in wanted]))
        return [_one(column, self) for column in zip(*values, strict=True)]


def _parts(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _arguments(same: Sequence[fx.Node]) -> list[tuple[object, object]]:
    """The arguments of a call in each trace, alike in which of the defaults they state."""
    if len({len(n.args) for n in same}) == 1 and len({tuple(n.kwargs) for n in same}) == 1:
        return [(n.args, n.kwargs) for n in same]
    target = same[0].target
    if not isinstance(target, OpOverload):
        raise NotNumbers
    return [_stated(n, target) for n in same]


def _stated(node: fx.Node, target: OpOverload) -> tuple[object, object]:
    """The arguments of a call with all defaults."""
    schema = target._schema.arguments
    by_place, by_name = ([a for a in schema if a.kwarg_only is only] for only in (False, True))
    rest = [node.kwargs.get(a.name, a.default_value) for a in by_place[len(node.args) :]]
    named = {a.name: node.kwargs.get(a.name, a.default_value) for a in by_name}
    return (*node.args, *rest), named


def _joined(each: Sequence[object], where: _Where) -> object:
    """Arguments that serve all traces."""
    flat = [pytree.tree_flatten(one, is_leaf=_is_numbers) for one in each]
    if any(spec != flat[0][1] for _, spec in flat):
        raise NotNumbers
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return pytree.tree_unflatten([_one(values, where) for values in columns], flat[0][1])


def _is_numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(type(one) is int for one in value)


def _one(values: Sequence[object], where: _Where) -> object:
    first = values[0]
    if isinstance(first, fx.Node):
        return first
    if all(type(v) is type(first) and v == first for v in values):
        return first
    if all(_is_numbers(v) for v in values):
        return where.numbers([v for v in values if isinstance(v, (list, tuple))])
    numbers = [v for v in values if type(v) is int]
    if len(numbers) < len(values):
        raise NotNumbers
    return where.number(numbers)


def _numbers_of(node: fx.Node) -> Iterator[Number]:
    """The numbers that depend on the device: of the arguments, operands and results of a node."""
    layouts = _layouts_around(node)
    seen = {leaf: None for leaf in _leaves(node) if isinstance(leaf, (LocalSize, LocalStart))}
    for layout in layouts:
        for dim in layout.dims:
            if not dim.even:
                seen.setdefault(LocalSize(dim))
    yield from seen
    for layout in layouts:
        dims = layout.dims
        for a, b in itertools.combinations(range(len(dims) + 1), 2):
            run = dims[a:b]
            if len(run) > 1 and any(not dim.even for dim in run):
                yield Combined(
                    "*",
                    tuple(LocalSize(dim) if not dim.even else dim.max_local_size() for dim in run),
                )


def _lists_of(node: fx.Node) -> Iterator[LocalIndices]:
    """The lists that depend on the device: of the arguments, operands and results of a node."""
    yield from (leaf for leaf in _leaves(node) if isinstance(leaf, LocalIndices))
    for layout in _layouts_around(node):
        yield from (LocalIndices(dim) for dim in layout.dims if dim.axes and not dim.plain)


def _leaves(node: fx.Node) -> list[object]:
    kinds = (LocalSize, LocalStart, LocalIndices)
    return pytree.tree_leaves((node.args, node.kwargs), is_leaf=lambda x: isinstance(x, kinds))


def _layouts_around(node: fx.Node) -> list[Layout]:
    found = (info(one).layout for one in (node, *node.all_input_nodes, *node.users))
    return [layout for layout in found if isinstance(layout, Layout)]


def _candidates(known: Sequence[Number]) -> Iterator[Number]:
    yield from known
    for number in known:
        for shift in (-1, 1):
            yield Combined("+", (number, shift))
    for a, b in itertools.combinations_with_replacement(known, 2):
        yield Combined("+", (a, b))
        yield Combined("*", (a, b))
    for a, b in itertools.permutations(known, 2):
        yield Combined("-", (a, b))
