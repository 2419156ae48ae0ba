"""Which chains to split: those that save the most computation for the bytes that they move.

Two chains that split one op along different factors exclude each other, so a choice is an
independent set: the one with the largest gain among those that split enough of the matrices.
Splitting a chain saves each device a part of every product with its parameters,
counted as the bytes of the product's split side, forward and backward; it costs an all-reduce where
a product sums over the chain, and one of the gradient where a product reads a value that is not in
it. That makes the first product of a chain column-parallel and the last row-parallel, and leaves
small outputs, such as the scores of a classifier or a router, whole. A matrix by itself, with its
result gathered or its argument sliced, is a chain too, for where no other splits enough.
"""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx

from shardlang.cost.chains import alone_bytes, chain_bytes, product_worth
from shardlang.cost.held import whole_bytes
from shardlang.init.chains import Chain, Dims
from shardlang.ir.collective import ReduceOp
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.dims import Dim
from shardlang.ir.graph import producer, sharding_of
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of, tensors_of
from shardlang.ir.traits import OpKind
from shardlang.rules.registry import traits_of

FIRM = 10
"""How many times more a split is worth that the model's own plan asks for."""

WORTH = 2
"""How many bytes a split saves at least for each that it moves."""

_MOST_TRIED = 100_000
"""The number of partial choices after which the best so far stands."""


@dataclass(frozen=True, slots=True)
class Site:
    """An op that multiplies by, or looks up in, a weight of two dims or more."""

    node: fx.Node
    slot: int
    place: tuple[fx.Node, int]
    lookup: bool

    @property
    def inner(self) -> list[int]:
        """Dims of the weight that the op sums over."""
        return [d for d, f in enumerate(self._names()) if f in sharding_of(self.node).rule.inner]

    @property
    def dims(self) -> list[int]:
        """All dims of the weight, those summed over first."""
        inner = self.inner
        return [*inner, *(d for d in range(len(self._names())) if d not in inner)]

    def _names(self) -> list[str]:
        dims = sharding_of(self.node).rule.operands[self.slot].dims
        return [spec[0][-1] if spec and spec[0] else "" for spec in dims]


@dataclass(slots=True)
class Kind:
    """Chains that differ in the numbers of their layers alone.

    Attributes:
        saved: bytes that splitting them saves.
        moved: bytes that it moves.
        covers: bytes of the matrices that it splits.
        rivals: kinds that cannot be chosen beside this one.
    """

    chains: list[Chain]
    saved: float = 0.0
    moved: float = 0.0
    covers: int = 0
    rivals: set[int] = field(default_factory=set)

    @property
    def gain(self) -> float:
        """What choosing the kind is worth."""
        return self.saved - WORTH * self.moved


def sites_of(dims: Dims) -> list[Site]:
    """Every product with a weight and every look-up by the model's own integer inputs."""
    found = []
    weights = picked(dims)
    for node in dims.nodes:
        if node in weights or node.op == "placeholder" or sharding_of(node).rule.passes:
            continue
        lookup = traits_of(node).kind is OpKind.LOOKUP
        for slot, value in enumerate(dims.operands[node]):
            source, index = producer(value)
            if (
                source in weights
                and tensor_of(value).dim() > 1
                and not (lookup and not by_input(dims, node, slot))
            ):
                found.append(Site(node, slot, (source, index), lookup))
    return found


def picked(dims: Dims) -> set[fx.Node]:
    """Weights, and what is picked from a stack of them by integers: the matrices of experts."""
    found = set(dims.weights)
    for node in dims.nodes:
        values = dims.operands[node]
        if values and tensor_of(values[0]).dim() > 2 and producer(values[0])[0] in found:
            others = [tensor_of(value).dtype for value in values[1:]]
            if all(not dtype.is_floating_point for dtype in others):
                found.add(node)
    return found


def by_input(dims: Dims, node: fx.Node, table: int) -> bool:
    """Whether a look-up is by an input as it is, and not by a count of positions."""
    keys = [value for slot, value in enumerate(dims.operands[node]) if slot != table]
    starts = {producer(key)[0] for key in keys if not tensor_of(key).dtype.is_floating_point}
    found = starts.union(*(nx.ancestors(dims.whole_numbers, start) for start in starts))
    leaves = dims.flow.leaves
    by_leaf = (one.op == "placeholder" and leaves[one].kind is LeafKind.INPUT for one in found)
    counted = any(traits_of(one).kind is OpKind.RUNNING for one in found)
    return any(by_leaf) and not counted


def all_chains(
    dims: Dims, sites: Iterable[Site], axis: Axis, cut_units: bool = False
) -> list[Chain]:
    """Every chain that starts at a dim of a weight: of the sums first, then of the rows.

    Args:
        cut_units: chains of the dims with fewer units than devices instead, such as few heads,
            split between any two indices.
    """
    chains: list[Chain] = []
    seen: set[Dim] = set()
    sites = list(sites)
    starts = [Dim(*s.place, d) for s in sites for d in s.inner]
    starts += [Dim(*s.place, d) for s in sites for d in s.dims]
    for start in dict.fromkeys(starts):
        layout = None if start in seen else dims.seed(start, axis, cut_units)
        if layout is not None:
            chain = dims.chain(start, layout)
            seen |= chain.places.keys()
            chains.append(chain)
    return [chain for chain in chains if chain.params]


def saved_in(
    dims: Dims,
    chain: Chain,
    sites: Mapping[fx.Node, list[Site]],
    firm: set[tuple[str, int]],
    lost: set[str],
) -> float:
    """Bytes that splitting a chain saves; parameters in `lost` stay whole."""
    wished = FIRM if firm.intersection(chain.params) else 1
    saved = 0.0
    for node, factors in chain.ops.items():
        for site in sites.get(node, ()):
            names = {dims.params[source].name for source in dims.sources(site.place[0])}
            saved += 0.0 if names & lost else saved_by(site, factors)
    return wished * saved


def saved_by(site: Site, factors: Mapping[str, DimLayout]) -> float:
    """Bytes of the split side of a product, there and back; 0 if its weight is not split."""
    rule = sharding_of(site.node).rule
    own = rule.operands[site.slot].factors
    split = own.intersection(factors)
    if not split:
        return 0.0
    rows = own & rule.outer
    tokens = _first(site.node).numel() / max(math.prod(rule.size(name) for name in rows), 1)
    width = math.prod(rule.size(name) for name in split)
    return product_worth(tokens, width, _first(site.node).element_size())


def is_convolution(node: fx.Node) -> bool:
    """Whether an op is a convolution."""
    return traits_of(node).kind is OpKind.CONVOLUTION


def moved_by(dims: Dims, chain: Chain) -> int:
    """Bytes that splitting a chain moves, forward and backward."""
    sums: list[fx.Node] = []
    read: dict[fx.Node, None] = {}
    for node, factors in chain.ops.items():
        if node in dims.weights or node.op == "placeholder":
            continue
        rule, names = sharding_of(node).rule, set(factors)
        if names & rule.inner and rule.reduce is ReduceOp.SUM:
            sums.append(node)
        for slot, operand in enumerate(rule.operands):
            value = dims.operands[node][slot]
            if not operand.factors & names and producer(value)[0] not in dims.weights:
                read[value] = None
    trained = [value for value in read if info(value).differentiable]
    parts = sums, trained, chain.gathered, chain.sliced
    return chain_bytes(*(map(_bytes, values) for values in parts))


def _bytes(node: fx.Node) -> int:
    return whole_bytes(tensors_of(node))


def _first(node: fx.Node) -> torch.Tensor:
    val = info(node).value
    found = val[0] if isinstance(val, (list, tuple)) else val
    assert isinstance(found, torch.Tensor)
    return found


def alone(
    dims: Dims, chain: Chain, name: str, sites: Iterable[Site], products: Container[fx.Node]
) -> list[tuple[Chain, float]]:
    """One matrix of a chain split by itself, each of its dims, with the bytes that this moves.

    Split along its rows, the result is gathered and the gradient of what it multiplies summed;
    along its columns, the other way round. What other products read too is summed with them.

    Args:
        sites: the products with the matrix.
        products: all products with a weight.
    """
    ops = {site: chain.ops.get(site.node, {}) for site in sites}
    if any(not saved_by(site, factors) for site, factors in ops.items()):
        return []
    moved = 0
    for site, factors in ops.items():
        read = sum(_bytes(v) for v in _read_alone(dims, site, products))
        sums = sharding_of(site.node).rule.inner & factors.keys()
        moved += alone_bytes(_bytes(site.node), read, sums=bool(sums))
    by_node = {site.node: factors for site, factors in ops.items()}
    pairs = ((pair, layout) for pair, layout in chain.params.items() if pair[0] == name)
    return [(Chain(ops=by_node, params={pair: layout}), moved) for pair, layout in pairs]


def _read_alone(dims: Dims, site: Site, products: Container[fx.Node]) -> Iterator[fx.Node]:
    """The differentiable values that a product reads, and no other product."""
    for slot, value in enumerate(dims.operands[site.node]):
        source, index = producer(value)
        readers = {user for user, _, used in dims.uses[source] if used == index}
        others = [user for user in readers if user is not site.node and user in products]
        is_weight = slot == site.slot or source in dims.weights
        if not is_weight and info(value).differentiable and not others:
            yield value


@dataclass(slots=True)
class Priced:
    """A chain with what it saves, moves and covers, in bytes."""

    chain: Chain
    saved: float
    moved: float
    covers: int


def kinds_of(priced: Sequence[Priced], alike: Mapping[str, str]) -> list[Kind]:
    """Chains grouped by their parameters, whose names `alike` maps to one name for all layers.

    Chains of one kind exclude the same kinds, and none excludes another.
    """
    rivals = _rivals([one.chain for one in priced])
    place = _numbered(
        (one.saved > 0, *sorted({(alike[n], d, str(v)) for (n, d), v in one.chain.params.items()}))
        for one in priced
    )
    count = 0
    while count < len(set(place)):
        count = len(set(place))
        place = _numbered(
            (mine, frozenset(place[i] for i in rivals[at])) for at, mine in enumerate(place)
        )
    place = _without_rivals(place, rivals)
    kinds = [Kind([]) for _ in range(len(set(place)))]
    for at, one in enumerate(priced):
        kind = kinds[place[at]]
        kind.chains.append(one.chain)
        kind.saved += one.saved
        kind.moved += one.moved
        kind.covers += one.covers
        kind.rivals |= {place[i] for i in rivals[at]} - {place[at]}
    return kinds


def _without_rivals(place: Sequence[int], rivals: Sequence[set[int]]) -> list[int]:
    """The kinds of chains, those with chains that exclude each other taken apart."""
    parts: dict[int, list[list[int]]] = {}
    keys: list[tuple[int, int]] = []
    for at, mine in enumerate(place):
        known = parts.setdefault(mine, [])
        free = (i for i, members in enumerate(known) if not rivals[at].intersection(members))
        part = next(free, len(known))
        if part == len(known):
            known.append([])
        known[part].append(at)
        keys.append((mine, part))
    return _numbered(keys)


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    """The keys as numbers, the first seen as 0."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _rivals(chains: Sequence[Chain]) -> list[set[int]]:
    """For each chain those that split an op, or a parameter, in different ways."""
    rivals: list[set[int]] = [set() for _ in chains]
    by_node: dict[fx.Node, list[int]] = {}
    by_param: dict[str, list[int]] = {}
    for index, chain in enumerate(chains):
        for node, factors in chain.ops.items():
            others = by_node.setdefault(node, [])
            _note(rivals, index, [i for i in others if chains[i].ops[node] != factors])
            others.append(index)
        for name in {name for name, _ in chain.params}:
            others = by_param.setdefault(name, [])
            _note(rivals, index, others)
            others.append(index)
    return rivals


def _note(rivals: list[set[int]], index: int, others: Iterable[int]) -> None:
    for other in others:
        rivals[index].add(other)
        rivals[other].add(index)


def best(kinds: list[Kind], enough: float) -> list[int]:
    """The kinds, none excluding another, that gain the most while covering `enough` bytes.

    Where none covers enough, those that cover the most. Exact up to `_MOST_TRIED` partial choices.
    """
    order = [i for i, kind in enumerate(kinds) if kind.gain > 0 or kind.covers]
    return sorted(_Search(kinds, enough).run(sorted(order, key=lambda i: -kinds[i].gain)))


Worth = tuple[float, float]
"""Bytes covered, as far as they count, and gain."""


class _Search:
    """The best independent set of kinds, by branching on each in turn."""

    def __init__(self, kinds: list[Kind], enough: float) -> None:
        self.kinds, self.enough = kinds, enough
        self.found: list[int] = []
        self.worth: Worth = (-1.0, 0.0)
        self.tried = 0

    def run(self, order: list[int]) -> list[int]:
        self.branch([], order, 0.0, 0)
        return self.found

    def branch(self, chosen: list[int], open_: list[int], gain: float, covers: int) -> None:
        """Try all choices that begin with some kinds and go on among others."""
        self.tried += 1
        reached = min(covers, self.enough), gain
        if reached > self.worth:
            self.found, self.worth = chosen, reached
        if not open_ or self.tried > _MOST_TRIED or self.limit(open_, gain, covers) <= self.worth:
            return
        head, *tail = open_
        kind = self.kinds[head]
        allies = [index for index in tail if index not in kind.rivals]
        self.branch([*chosen, head], allies, gain + kind.gain, covers + kind.covers)
        self.branch(chosen, tail, gain, covers)

    def limit(self, open_: list[int], gain: float, covers: int) -> Worth:
        """More than this no choice can be worth."""
        for index in open_:
            gain += max(self.kinds[index].gain, 0.0)
            covers += self.kinds[index].covers
        return min(covers, self.enough), gain
