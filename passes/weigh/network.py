"""What the ways of many ops cost together, as tables of prices.

A variable is an op with several ways. An op has a price of its own; a value has one that depends on
its producer and all its readers: each layout that some reader wants is made once. Where a value has
many open readers, a variable of its own says which layouts are made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx

from shardlang.cost.readings import readings_bytes
from shardlang.cost.ring import reduce_limit
from shardlang.ir.accumulated import MICROBATCH
from shardlang.ir.dims import Use
from shardlang.ir.graph import ShardGraph, producer, result_layout
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import info, tensor_of, tensors_of
from shardlang.passes.weigh.eliminate import NEVER, Table, total_of
from shardlang.passes.weigh.options import Option
from shardlang.passes.weigh.ways import Ways

UNIT = 10_000
"""A byte in the whole numbers of the tables."""

FLOPS_PER_BYTE = 1000
"""Operations that take as long as one byte takes between devices: H100s over NVLink, roughly."""

MEMORY = 1e-7
"""What an element that an op reads or writes counts in bytes: of equal ways, that on shards.

It is to a call (`shardlang.cost.readings.CALL`) roughly as a microsecond of memory is to ten."""

JOINT = 256
"""The most entries of a table over a producer and its readers."""

MADE = 6
"""The most layouts of one value that a variable chooses among."""


Returned = dict[tuple[fx.Node, int], dict[fx.Node, Layout | None]]
"""The values of each result of an op that leave, and how; None for one that leaves as it is."""


@dataclass(slots=True)
class Network:
    """The tables of all values and ops that depend on a choice.

    Attributes:
        numbers: the variable of each op with several ways.
        sizes: how many options each variable has.
        alone: the prices of ops.
        between: the prices of values: what is moved between ops, in bytes.
        returned: what leaves.
    """

    ways: Ways
    numbers: dict[fx.Node, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    alone: list[Table] = field(default_factory=list)
    between: list[Table] = field(default_factory=list)
    returned: Returned = field(default_factory=dict)

    @staticmethod
    def of(ways: Ways) -> Network:
        """The network of all ways."""
        net = Network(ways, returned=returned_layouts(ways.flow.graph))
        for node, options in ways.options.items():
            net.numbers[node] = net.variable(len(options))
        for node in ways.options:
            prices = [price(node, option) for option in ways.options[node]]
            net.alone.append(net.table((net.numbers[node],), prices))
        for source, index in net._values():
            Readings(net, source, index).add()
        return net

    def variable(self, size: int) -> int:
        """A new variable of so many options."""
        self.sizes.append(size)
        return len(self.sizes) - 1

    def as_now(self) -> Iterator[Table]:
        """The prices of ops, no other than they are split now."""
        for node, table in zip(self.numbers, self.alone, strict=True):
            options = self.ways.options[node]
            other = torch.tensor([one.sharding is not options[0].sharding for one in options])
            yield Table(table.over, table.prices.masked_fill(other, NEVER))

    def total(self, chain: set[int], chosen: Sequence[int]) -> int:
        """The price of a choice of one chain, in parts of a byte."""
        tables = (*self.alone, *self.between)
        return total_of(chosen, [one for one in tables if chain.issuperset(one.over)])

    def moved(self, chain: set[int], chosen: Sequence[int]) -> int:
        """Bytes that a choice moves between the ops of one chain, forward and backward."""
        tables = [one for one in self.between if chain.issuperset(one.over)]
        return total_of(chosen, tables) // UNIT

    def chains(self) -> list[set[int]]:
        """The variables whose prices depend on one another, chain by chain."""
        net = nx.Graph()
        net.add_nodes_from(range(len(self.sizes)))
        for table in self.between:
            nx.add_path(net, table.over)
        return list(nx.connected_components(net))

    def table(self, over: tuple[int, ...], prices: Sequence[float]) -> Table:
        """The table of prices in bytes, one for each joint choice, the last variable first."""
        whole = [NEVER if math.isinf(one) else min(round(one * UNIT), NEVER) for one in prices]
        shape = [self.sizes[variable] for variable in over]
        return Table(over, torch.tensor(whole, dtype=torch.int64).reshape(shape))

    def _values(self) -> Iterator[tuple[fx.Node, int]]:
        """Every value that an op with several ways makes or reads."""
        found: dict[tuple[fx.Node, int], None] = {}
        for node in self.numbers:
            dims = self.ways.flow.dims
            found.update(dict.fromkeys(producer(operand) for operand in dims.operands[node]))
            found.update(dict.fromkeys((node, use.result) for use in dims.uses[node]))
        found.update(dict.fromkeys(one for one in self.returned if one[0] in self.numbers))
        yield from found


class Readings:
    """The price of one value: what its readers want of what its producer makes."""

    def __init__(self, net: Network, source: fx.Node, index: int) -> None:
        self.net, self.source, self.index = net, source, index
        uses = [use for use in net.ways.flow.dims.uses[source] if use.result == index]
        self.returned = net.returned.get((source, index), {})
        read = (net.ways.flow.dims.operands[use.reader][use.slot] for use in uses)
        self.value = next(iter((*read, *self.returned)))
        self.made = [option.makes[index] for option in net.ways.of(source)]
        self.open: dict[fx.Node, list[Use]] = {}
        fixed: set[Layout] = set()
        for use in uses:
            if use.reader in net.numbers:
                self.open.setdefault(use.reader, []).append(use)
            else:
                fixed.add(net.ways.current(use.reader).wants[use.slot])
        self.fixed = frozenset(fixed)

    def add(self) -> None:
        """Add the tables of the value."""
        sizes = [len(self.made), *(len(self.net.ways.of(reader)) for reader in self.open)]
        if math.prod(sizes) <= JOINT:
            self._add_joint()
        else:
            self._add_by_layouts()

    def _wanted(self, reader: fx.Node, option: Option) -> frozenset[Layout]:
        return frozenset(option.wants[use.slot] for use in self.open[reader])

    def _price(self, made: Layout, wanted: frozenset[Layout]) -> float:
        goals = self.returned.values()
        wanted |= {Layout(made.dims) if goal is None else goal for goal in goals}
        if any(moves_rows(made, one) for one in wanted):
            return math.inf
        known = info(self.value)
        return readings_bytes(
            made, wanted, tensor_of(self.value).dtype.itemsize, known.differentiable
        )

    def _source(self) -> tuple[int, ...]:
        return (self.net.numbers[self.source],) if self.source in self.net.numbers else ()

    def _add_joint(self) -> None:
        """One table over the producer and all open readers."""
        readers = [reader for reader in self.open if reader is not self.source]
        choices = [[self._wanted(r, option) for option in self.net.ways.of(r)] for r in readers]
        prices = [
            self._price(made, self.fixed.union(*wanted))
            for made in self.made
            for wanted in itertools.product(*choices)
        ]
        over = (*self._source(), *(self.net.numbers[reader] for reader in readers))
        self.net.between.append(self.net.table(over, prices))

    def _add_by_layouts(self) -> None:
        """A variable for the layouts that are made, and what each reader finds among them."""
        sets = self._sets()
        layouts = self.net.variable(len(sets))
        prices = [self._price(made, self.fixed | one) for made in self.made for one in sets]
        self.net.between.append(self.net.table((*self._source(), layouts), prices))
        for reader in self.open:
            options = self.net.ways.of(reader)
            found = [
                0.0 if self._wanted(reader, option) <= one | self.fixed else math.inf
                for one in sets
                for option in options
            ]
            self.net.between.append(self.net.table((layouts, self.net.numbers[reader]), found))

    def _sets(self) -> list[frozenset[Layout]]:
        """The sets of layouts that may be made: first those that are wanted now."""
        now = frozenset[Layout]().union(
            *(self._wanted(reader, self.net.ways.current(reader)) for reader in self.open)
        )
        every = {
            want: None
            for reader in self.open
            for option in self.net.ways.of(reader)
            for want in self._wanted(reader, option)
        }
        more = [want for want in every if want not in now][: MADE - len(now)]
        subsets = (
            frozenset(some)
            for count in range(len(now) + len(more) + 1)
            for some in itertools.combinations([*now, *more], count)
        )
        return [now, *(one for one in subsets if one != now)]


def moves_rows(made: Layout, wanted: Layout) -> bool:
    """Whether rows would go from one microbatch to another: these follow each other in time.

    Along the microbatches a dim is split more majorly than along any axis of devices, so what is
    split over devices alone would have its rows put in another order.
    """
    pairs = zip(made.dims, wanted.dims, strict=True)
    return any(
        bool(have.axes)
        and any(axis.name == MICROBATCH for axis in want.axes)
        and not any(axis.name == MICROBATCH for axis in have.axes)
        for have, want in pairs
    )


def returned_layouts(graph: ShardGraph) -> Returned:
    """The layouts in which results leave: a buffer's new value in that of the buffer."""
    leaves = {leaf.name: node for node, leaf in graph.placeholders()}
    found: Returned = {}
    for result, value in zip(graph.results, graph.result_nodes, strict=True):
        if value is not None:
            mutates = result.kind is ResultKind.MUTATION
            goal = result_layout(leaves[result.name]) if mutates else None
            found.setdefault(producer(value), {})[value] = goal
    return found


def price(node: fx.Node, option: Option) -> float:
    """What an op costs alone in one way: its operations as bytes, and what a lowering sends."""
    times = 3 if info(node).differentiable else 1
    work = times * option.flops() / FLOPS_PER_BYTE
    return work + MEMORY * _touched(node, option) + _lowered(node, option)


def _touched(node: fx.Node, option: Option) -> int:
    """Elements that the busiest device reads and writes in the forward."""
    return sum(layout.held() for layout in (*option.wants, *option.makes))


def _lowered(node: fx.Node, option: Option) -> float:
    """About what a lowered op sends for its statistics, there and back.

    A result that is split along a factor that must be lowered has statistics without it. One that
    is a sum is reduced by its readers; only an op that is not linear, such as a variance, has
    another sum of that size before it.
    """
    sharding = option.sharding
    if not sharding.needs_lowering():
        return 0.0
    mine = {name for name in sharding.rule.lowered if sharding.factors[name].axes}
    times = reduce_limit(2 if info(node).differentiable else 1)
    total = 0.0
    for index, tensor in enumerate(tensors_of(node)):
        dims, made = sharding.rule.results[index], option.makes[index]
        inside = [any(name in mine for block in spec for name in block) for spec in dims]
        if not any(inside) and sharding.rule.linear:
            continue
        pairs = zip(inside, made.dims, strict=True)
        sizes = (1 if lowered else dim.max_local_size() for lowered, dim in pairs)
        total += times * math.prod(sizes) * tensor.dtype.itemsize
    return total
