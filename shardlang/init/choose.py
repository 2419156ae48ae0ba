"""Which chains to split: those that save the most computation for the bytes that they move.

Two chains that split one op along different factors exclude each other, so a choice is an
independent set. Splitting a chain saves each device a part of every product with its parameters,
counted as the bytes of the product's split side, forward and backward; it costs an all-reduce where
a product sums over the chain, and one of the gradient where a product reads a value that is not in
it. That makes the first product of a chain column-parallel and the last row-parallel, and leaves
small outputs, such as the scores of a classifier or a router, whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.init.chains import Chain, Dims, Place
from shardlang.ir.graph import producer, sharding_of
from shardlang.ir.layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.rules.embedding import aten

FIRM = 10
"""How many times more a split is worth that the model's own plan asks for."""

_MOST_TRIED = 14
"""The number of kinds of chains up to which every choice is tried."""


@dataclass(frozen=True, slots=True)
class Site:
    """An op that multiplies by, or looks up in, a weight."""

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
        gain: bytes saved less bytes moved, over all chains of the kind.
        foes: kinds that cannot be chosen beside this one.
    """

    chains: list[Chain]
    gain: float = 0.0
    foes: set[int] = field(default_factory=set)


def sites_of(dims: Dims) -> list[Site]:
    """Every product with a weight and every look-up by the model's own integer inputs."""
    found = []
    for node in dims.nodes:
        if node in dims.weights or node.op == "placeholder" or sharding_of(node).rule.passes:
            continue
        lookup = node.target is aten.embedding.default
        for slot, value in enumerate(dims.calls[node]):
            source, index = producer(value)
            is_weight = source in dims.weights and sharding_of(source).rule.results[index]
            if is_weight and not (lookup and not by_input(dims, node, slot)):
                found.append(Site(node, slot, (source, index), lookup))
    return found


def by_input(dims: Dims, node: fx.Node, table: int) -> bool:
    """Whether a look-up is by an input as it is, and not by a count of positions."""
    queue = [v for slot, v in enumerate(dims.calls[node]) if slot != table]
    seen: set[fx.Node] = set()
    found = False
    while queue:
        read = queue.pop()
        value = producer(read)[0]
        if value in seen or read.meta["val"].dtype.is_floating_point:
            continue
        seen.add(value)
        if "cumsum" in str(value.target):
            return False
        found |= value.op == "placeholder" and dims.flow.leaves[value].kind == "input"
        queue += dims.calls.get(value, [])
    return found


def all_chains(dims: Dims, sites: Iterable[Site], axis: Axis) -> list[Chain]:
    """Every chain that starts at a dim of a weight: of the sums first, then of the rows."""
    chains: list[Chain] = []
    seen: set[Place] = set()
    sites = list(sites)
    starts = [(*s.place, d) for s in sites for d in s.inner]
    starts += [(*s.place, d) for s in sites for d in s.dims]
    for start in dict.fromkeys(starts):
        layout = None if start in seen else dims.seed(start, axis)
        if layout is not None:
            chain = dims.chain(start, layout)
            seen |= chain.places.keys()
            chains.append(chain)
    return [chain for chain in chains if chain.params]


def gain_of(
    dims: Dims, chain: Chain, sites: Mapping[fx.Node, list[Site]], firm: set[tuple[str, int]]
) -> float:
    """Bytes that a chain saves, less those that it moves."""
    wished = FIRM if firm.intersection(chain.params) else 1
    pairs = ((s, factors) for n, factors in chain.ops.items() for s in sites.get(n, ()))
    return wished * sum(saved_by(*pair) for pair in pairs) - moved_by(dims, chain)


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
    return 4.0 * tokens * width * _first(site.node).element_size()


def moved_by(dims: Dims, chain: Chain) -> float:
    """Bytes that splitting a chain moves, forward and backward."""
    read: dict[fx.Node, None] = {}
    total = 0.0
    for node, factors in chain.ops.items():
        if node in dims.weights or node.op == "placeholder":
            continue
        rule, names = sharding_of(node).rule, set(factors)
        if names & rule.inner and rule.reduce == "sum":
            total += 2.0 * _bytes(node)
        for slot, operand in enumerate(rule.operands):
            value = dims.calls[node][slot]
            if not operand.factors & names and producer(value)[0] not in dims.weights:
                read[value] = None
    total += sum(2.0 * _bytes(value) for value in read if value.meta.get("diff"))
    total += sum(4.0 * _bytes(value) for value in chain.gathered)
    return total + sum(1.0 * _bytes(value) for value in chain.sliced)


def _bytes(node: fx.Node) -> int:
    val = node.meta["val"]
    parts = val if isinstance(val, (list, tuple)) else [val]
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def _first(node: fx.Node) -> torch.Tensor:
    val = node.meta["val"]
    found = val[0] if isinstance(val, (list, tuple)) else val
    assert isinstance(found, torch.Tensor)
    return found


def kinds_of(chains: Iterable[Chain], alike: Mapping[str, str], gains: list[float]) -> list[Kind]:
    """Chains grouped by their parameters, whose names `alike` maps to one name for all layers."""
    kinds: dict[tuple[tuple[str, int, str], ...], Kind] = {}
    groups: list[Kind] = []
    for chain, gain in zip(chains, gains, strict=True):
        key = tuple(sorted({(alike[n], d, str(v)) for (n, d), v in chain.params.items()}))
        kind = kinds.setdefault(key, Kind([]))
        kind.chains.append(chain)
        kind.gain += gain
    groups = list(kinds.values())
    _find_foes(groups)
    return groups


def _find_foes(kinds: list[Kind]) -> None:
    """Note which kinds split an op, or a parameter, in different ways."""
    owners: dict[fx.Node, list[tuple[int, dict[str, DimLayout]]]] = {}
    for index, kind in enumerate(kinds):
        for chain in kind.chains:
            for node, factors in chain.ops.items():
                for other, theirs in owners.setdefault(node, []):
                    if other != index and theirs != factors:
                        kind.foes.add(other)
                        kinds[other].foes.add(index)
                owners[node].append((index, factors))
    by_param: dict[str, set[int]] = {}
    for index, kind in enumerate(kinds):
        for chain in kind.chains:
            for name, _ in chain.params:
                by_param.setdefault(name, set()).add(index)
    for indices in by_param.values():
        for index in indices:
            kinds[index].foes |= indices - {index}


def best(kinds: list[Kind]) -> list[int]:
    """The choice of kinds that do not exclude each other with the largest gain.

    Exact up to `_MOST_TRIED` kinds that are worth choosing; beyond, the largest gains come first.
    """
    worth = sorted(
        (i for i, kind in enumerate(kinds) if kind.gain > 0), key=lambda i: -kinds[i].gain
    )
    tried, rest = worth[:_MOST_TRIED], worth[_MOST_TRIED:]
    _, chosen = _search(kinds, tried)
    for index in rest:
        if not kinds[index].foes.intersection(chosen):
            chosen.append(index)
    return sorted(chosen)


def _search(kinds: list[Kind], open_: list[int]) -> tuple[float, list[int]]:
    """The best independent set among some kinds, by branching on the first."""
    if not open_:
        return 0.0, []
    head, *tail = open_
    with_head = [i for i in tail if i not in kinds[head].foes]
    gain, chosen = _search(kinds, with_head)
    gain += kinds[head].gain
    if len(with_head) == len(tail):
        return gain, [head, *chosen]
    other, without = _search(kinds, tail)
    return (gain, [head, *chosen]) if gain >= other else (other, without)
