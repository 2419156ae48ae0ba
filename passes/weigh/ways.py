"""Which ops may be split otherwise over an axis, and how: from where something is open, outward.

Three things open a question: a parameter that is stated over a data axis, where it is read; a value
that its reader wants in another layout; and an op that was split by its own price. What the first
two might be given is offered to their neighbours too, readers and sources, until it meets what is
stated or claimed. What the third might be given is offered to parameters and to its readers, and
only to those that no statement has split: it does not undo what has flowed from a statement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import fx

from shardlang.ir.graph import constrain, producer, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of
from shardlang.ir.origin import Reason
from shardlang.passes.experts.row_region import groups_of, weight_of
from shardlang.passes.propagate.flow import Flow
from shardlang.passes.weigh.options import (
    Option,
    as_it_is,
    by_factors,
    by_operand,
    by_result,
    by_sum,
    unsplit,
    varying,
)

MOST = 8
"""The most ways that are weighed for one op."""


@dataclass(slots=True)
class Ways:
    """The ways in which ops may be split over one axis; the first is how they are split now."""

    flow: Flow
    axis: Axis
    options: dict[fx.Node, list[Option]] = field(default_factory=dict)
    now: dict[fx.Node, Option] = field(default_factory=dict)
    rooted: dict[fx.Node, bool] = field(default_factory=dict)
    names: dict[str, fx.Node] = field(default_factory=dict)
    groups: frozenset[fx.Node] = frozenset()
    queue: deque[tuple[fx.Node, Option, bool]] = field(default_factory=deque)

    def find(self) -> None:
        """Find all ways; an op that is not in `options` then has one."""
        self.groups = groups_read(self.flow)
        self.names = {node.name: node for node in self.flow.nodes}
        for node in self.flow.nodes:
            self._open(node)
        while self.queue:
            node, option, back = self.queue.popleft()
            self._offer_readers(node, option, back)
            self._offer_sources(node, option, back)
        for node, options in self.options.items():
            self.options[node] = varying(node, options, self.axis)

    def of(self, node: fx.Node) -> list[Option]:
        """The ways of one op."""
        found = self.options.get(node)
        return [self.current(node)] if found is None else found

    def current(self, node: fx.Node) -> Option:
        """How an op is split now."""
        if node not in self.now:
            self.now[node] = as_it_is(node)
        return self.now[node]

    def is_open(self, node: fx.Node) -> bool:
        """Whether nothing that is stated or claimed decides how an op is split over the axis."""
        if info(node).stated is not None or self.axis in sharding_of(node).closed:
            return False
        if node.op == "placeholder":
            leaf = self.flow.leaves[node]
            return leaf.kind is LeafKind.PARAM and self.axis not in self.flow.graph.data_axes
        return node.target is not constrain and not self._by_group(node)

    def _by_group(self, node: fx.Node) -> bool:
        """Whether `route_rows` decides for an op: it picks by the groups of a product's rows."""
        return groups_of(node) in self.groups

    def _is_rooted(self, node: fx.Node) -> bool:
        """Whether an op is split over the axis because of a statement, be it from afar."""
        seen: list[fx.Node] = []
        at: fx.Node | None = node
        while at is not None and at not in self.rooted and at not in seen:
            seen.append(at)
            origin = sharding_of(at).origins.get(self.axis)
            before = self._before(at)
            if before is None:
                self.rooted[at] = origin is not None and origin.reason is not Reason.CHEAPEST
            at = before
        found = self.rooted.get(seen[-1] if at is None else at, False)
        self.rooted.update(dict.fromkeys(seen, found))
        return found

    def _before(self, node: fx.Node) -> fx.Node | None:
        """From where an op has its split; None where it is its own, or nobody's."""
        origin = sharding_of(node).origins.get(self.axis)
        if origin is None:
            return None
        if origin.reason is Reason.FLOWS:
            return self.names.get(origin.source)
        if origin.reason is Reason.CHEAPEST and self._goes_on(node):
            layouts = ((producer(o)[0], result_layout(o)) for o in self.flow.dims.operands[node])
            return next(
                (source for source, lies in layouts if lies.dim_of(self.axis) is not None), None
            )
        return None

    def _goes_on(self, node: fx.Node) -> bool:
        """Whether a result is split over the axis, as an operand is."""
        return self.current(node).makes[0].dim_of(self.axis) is not None

    def _open(self, node: fx.Node) -> None:
        """Note what opens a question at an op."""
        origin = sharding_of(node).origins.get(self.axis)
        priced = origin is not None and origin.reason is Reason.CHEAPEST
        if priced and self.is_open(node) and not self._goes_on(node):
            every = by_factors(node, self.axis, self.flow.open_factors(node))
            self._add(node, (*every, Option(unsplit(node, self.axis))), back=False)
        for slot, operand in enumerate(self.flow.dims.operands[node]):
            have, want = result_layout(operand), sharding_of(node).operand(slot)
            if _differs(have, want, self.axis):
                self._open_edge(node, slot, operand, have, want)

    def _open_edge(
        self, node: fx.Node, slot: int, operand: fx.Node, have: Layout, want: Layout
    ) -> None:
        """Let a reader take a value as it is, or its producer make it as the reader wants it.

        A reader that cannot take it as it is may split the same dim in another way: in blocks.
        """
        at = have.dim_of(self.axis)
        if at is not None and self.is_open(node):
            found = list(self._read(node, slot, have))
            dim = {
                name for block in sharding_of(node).rule.operands[slot].dims[at] for name in block
            }
            dim &= self.flow.open_factors(node)
            self._add(node, found or by_factors(node, self.axis, dim), back=True)
        if want.dim_of(self.axis) is not None:
            self._make(operand, want, back=True)

    def _make(self, value: fx.Node, want: Layout, *, back: bool) -> None:
        """Let the producer of a value make it in a layout."""
        source, index = producer(value)
        if self.is_open(source):
            open_factors = self.flow.open_factors(source)
            self._add(source, by_result(source, index, want, self.axis, open_factors), back=back)

    def _add(self, node: fx.Node, found: Iterable[Option], *, back: bool) -> None:
        mine = self.options.get(node, [self.current(node)])
        known = {option.key for option in mine}
        for option in found:
            if option.key not in known and len(mine) < MOST:
                known.add(option.key)
                mine.append(option)
                self.queue.append((node, option, back))
        if len(mine) > 1:
            self.options[node] = mine

    def _offer_readers(self, node: fx.Node, option: Option, back: bool) -> None:
        for reader, slot, index in self.flow.dims.uses[node]:
            if self.is_open(reader) and (back or not self._is_rooted(reader)):
                self._add(reader, self._read(reader, slot, option.makes[index]), back=back)

    def _offer_sources(self, node: fx.Node, option: Option, back: bool) -> None:
        for slot, operand in enumerate(self.flow.dims.operands[node]):
            source, want = producer(operand)[0], option.wants[slot]
            weight = source in self.flow.weights
            if want.dim_of(self.axis) is not None and (back or weight):
                self._make(operand, want, back=back)
            elif weight and self.is_open(source):
                self._add(source, [Option(unsplit(source, self.axis))], back=back)

    def _read(self, reader: fx.Node, slot: int, made: Layout) -> Iterator[Option]:
        """The ways in which an op may read an operand as it would be made."""
        if made.dim_of(self.axis) is not None:
            open_factors = self.flow.open_factors(reader)
            yield from by_operand(reader, slot, made, self.axis, open_factors)
        elif self.axis in made.partial:
            yield from by_sum(reader, slot, self.axis)
        elif self._all_whole(reader):
            yield Option(unsplit(reader, self.axis))

    def _all_whole(self, node: fx.Node) -> bool:
        """Whether every operand that is split over the axis now may be whole."""
        for operand in self.flow.dims.operands[node]:
            source, index = producer(operand)
            ways = self.of(source)
            if all(way.makes[index].dim_of(self.axis) is not None for way in ways):
                return False
        return True


def _differs(have: Layout, want: Layout, axis: Axis) -> bool:
    """Whether an axis splits a value in one of two layouts, and not so in the other."""
    pairs = zip(have.dims, want.dims, strict=True)
    return any(one.only([axis]) != other.only([axis]) for one, other in pairs)


def groups_read(flow: Flow) -> frozenset[fx.Node]:
    """The values that say which of several matrices each row is multiplied with."""
    calls = (node for node in flow.nodes if node.op != "placeholder")
    found = ((node, groups_of(node)) for node in calls if node.target is not constrain)
    return frozenset(
        groups
        for node, groups in found
        if groups is not None and tensor_of(weight_of(node)).dim() > 2
    )
