"""From the plans and the structure of a model to a layout for each of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd, prod

from torch import fx

from shardlang.cost.held import whole_bytes
from shardlang.init.chains import Chain, Dims
from shardlang.init.choose import (
    Priced,
    Site,
    all_chains,
    alone,
    best,
    is_convolution,
    kinds_of,
    moved_by,
    saved_in,
    sites_of,
)
from shardlang.init.experts import Experts
from shardlang.init.names import generic
from shardlang.init.plans import Wishes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.dims import Dim
from shardlang.ir.mesh import Axis
from shardlang.ir.node import tensor_of, tensors_of
from shardlang.ir.traits import OpKind
from shardlang.passes.propagate.align_units import in_units
from shardlang.rules.registry import traits_of

HEADS = "attention heads"
"""The title of parameters that are split between heads."""

ENOUGH = 0.9
"""The part of the bytes of all matrices that is split at least, if the sizes allow it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How one dim is split: over which axes, as how many packed blocks (or in which ratios)."""

    axes: tuple[str, ...]
    blocks: tuple[int, ...] = ()


@dataclass(slots=True)
class Layouts:
    """The layouts of a model's parameters.

    Attributes:
        entries: the split dims of each stated parameter.
        titles: what each stated parameter is part of, for a comment.
        matrices: bytes of every parameter that a product reads.
    """

    entries: dict[str, dict[int, Entry]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    matrices: dict[str, int] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        """The part of the bytes of all matrices that is split, in percent."""
        split = sum(size for name, size in self.matrices.items() if name in self.entries)
        return 100.0 * split / sum(self.matrices.values()) if self.matrices else 100.0

    @property
    def whole(self) -> list[str]:
        """The matrices that no statement splits, the largest first."""
        left = [name for name in self.matrices if name not in self.entries]
        return sorted(left, key=lambda name: -self.matrices[name])


def lay_out(dims: Dims, axis: Axis | None, experts: Axis | None, wishes: Wishes) -> Layouts:
    """Choose the layout of every parameter over the model axis, and of experts over theirs."""
    sites = sites_of(dims)
    work = _Work(dims, sites, axis or Axis("none", 1), wishes)
    by_hand = None if experts is None else Experts(dims, sites)
    if by_hand is not None and experts is not None:
        work.place_experts(experts, by_hand.stacked())
    if axis is not None:
        work.choose()
    if by_hand is not None and experts is not None:
        work.split_experts(experts, by_hand.listed())
    return work.made


class _Work:
    """One choice of layouts."""

    def __init__(self, dims: Dims, sites: list[Site], axis: Axis, wishes: Wishes) -> None:
        self.dims, self.sites, self.axis, self.wishes = dims, sites, axis, wishes
        self.by_node: dict[fx.Node, list[Site]] = {}
        for site in self.sites:
            self.by_node.setdefault(site.node, []).append(site)
        self.nodes = {leaf.name: node for node, leaf in dims.states.items()}
        self.shapes = {name: tuple(tensor_of(node).shape) for name, node in self.nodes.items()}
        self.alike = {name: generic(name) for name in self.nodes}
        self.made = Layouts(matrices=self._matrices())

    def _matrices(self) -> dict[str, int]:
        """Bytes of the weights of all products; of convolutions too where they are the most."""
        found: tuple[dict[str, int], dict[str, int]] = {}, {}
        for site in self.sites:
            for node in () if site.lookup else self.dims.sources(site.place[0]):
                leaf = self.dims.params[node]
                if len(self.shapes[leaf.name]) > 1:
                    found[is_convolution(site.node)][leaf.name] = whole_bytes(tensors_of(node))
        products, convolutions = found
        if sum(convolutions.values()) > sum(products.values()):
            return {**products, **convolutions}
        return products

    def choose(self) -> None:
        """State the chains whose choice gains the most while it splits enough."""
        chains = all_chains(self.dims, self.sites, self.axis)
        written = {id(chain): self._written(chain) for chain in chains if self._is_free(chain)}
        priced = [self._priced(c, written[id(c)]) for c in chains if id(c) in written]
        cut = all_chains(self.dims, self.sites, self.axis, cut_units=True)
        singles = self._singles([*chains, *cut])
        kinds = kinds_of([*(one for one in priced if one.saved), *singles], self.alike)
        for index in best(kinds, ENOUGH * sum(self.made.matrices.values())):
            for chain in kinds[index].chains:
                if id(chain) in written:
                    self._state(title_of(chain, self.by_node), written[id(chain)])
                else:
                    plain = {pair: Entry((self.axis.name,)) for pair in chain.params}
                    self._state("also split, with reshards beside them", plain)

    def _priced(self, chain: Chain, entries: Mapping[tuple[str, int], Entry]) -> Priced:
        """A chain with what it saves and moves, given the entries that the language has."""
        firm = {pair for pair, is_firm in self.wishes.dims.items() if is_firm}
        lost = {name for name, _ in chain.params.keys() - entries.keys()}
        saved = saved_in(self.dims, chain, self.by_node, firm, lost)
        covers = sum(self.made.matrices.get(name, 0) for name in {name for name, _ in entries})
        return Priced(chain, saved, moved_by(self.dims, chain), covers)

    def _singles(self, chains: Iterable[Chain]) -> list[Priced]:
        """Every matrix by itself, for want of others; what it saves does not count."""
        of_param: dict[str, list[Site]] = {}
        for site in self.sites:
            for node in self.dims.sources(site.place[0]):
                of_param.setdefault(self.dims.params[node].name, []).append(site)
        return [
            Priced(single, 0.0, moved, self.made.matrices[name])
            for chain in chains
            for name in dict.fromkeys(n for n, _ in chain.params if n in self.made.matrices)
            for single, moved in alone(self.dims, chain, name, of_param[name], self.by_node)
            if self._is_free(single)
        ]

    def _is_free(self, chain: Chain) -> bool:
        """Whether no dim of a chain is split over experts, and none shares its parameter."""
        made = self.made.entries
        once = len({name for name, _ in chain.params}) == len(chain.params)
        return once and not any(dim in made.get(name, {}) for name, dim in chain.params)

    def _state(self, title: str, entries: Mapping[tuple[str, int], Entry]) -> None:
        for (name, dim), entry in entries.items():
            self.made.entries.setdefault(name, {})[dim] = entry
            self.made.titles.setdefault(name, title)

    def _written(self, chain: Chain) -> dict[tuple[str, int], Entry]:
        """The entries of a chain's parameters, as far as the language has them."""
        found = {pair: self._entry(*pair, layout) for pair, layout in chain.params.items()}
        return {pair: entry for pair, entry in found.items() if entry is not None}

    def _entry(self, name: str, dim: int, layout: DimLayout) -> Entry | None:
        """The entry that gives a dim this layout; None where the language has none."""
        blocks = blocks_of(layout)
        size = self.shapes[name][dim]
        total = sum(blocks) if len(blocks) > 1 else blocks[0]
        if size % total:
            return None
        plain = DimLayout.shard(size, layout.axes, blocks if len(blocks) > 1 else blocks[0])
        written = in_units(plain, self.dims.unit(Dim(self.nodes[name], 0, dim)))
        if written != layout:
            return None
        return Entry((self.axis.name,), blocks if blocks != (1,) else ())

    def place_experts(self, axis: Axis, stacked: Iterable[str]) -> None:
        """Split the experts, those that the plan names or that look like some, over their axis."""
        pairs = self.wishes.experts or {*self._likely_experts(), *self._with_biases(axis, stacked)}
        for name, dim in sorted(pairs):
            if self.shapes[name][dim] >= axis.size:
                self.made.entries.setdefault(name, {})[dim] = Entry((axis.name,))
                self.made.titles.setdefault(name, "experts")

    def _with_biases(self, axis: Axis, stacked: Iterable[str]) -> Iterator[tuple[str, int]]:
        """Stacks of matrices, and the stacks of vectors that are split with them."""
        for name in stacked:
            yield name, 0
            start = Dim(self.nodes[name], 0, 0)
            layout = self.dims.seed(start, axis)
            chain = Chain() if layout is None else self.dims.chain(start, layout)
            yield from (pair for pair in chain.params if pair[0] not in self.made.matrices)

    def split_experts(self, axis: Axis, listed: Iterable[str]) -> None:
        """Split experts that are modules of their own within, over the axis for experts.

        One program runs on all devices, so none of them can hold some of the modules alone.
        """
        mine = set(listed) - {name for name, _ in self.wishes.experts}
        sites = [site for site in self.sites if set(self._names(site)) & mine]
        inside = _Work(self.dims, sites, axis, Wishes())
        inside.choose()
        for name, entries in inside.made.entries.items():
            if name in mine:
                self._join(name, entries)

    def _join(self, name: str, entries: Mapping[int, Entry]) -> None:
        """Split dims of a parameter over the axes of some entries too."""
        made = self.made.entries.setdefault(name, {})
        for dim, entry in entries.items():
            before = made.get(dim, Entry((), entry.blocks))
            if before.blocks == entry.blocks:
                made[dim] = Entry((*entry.axes, *before.axes), entry.blocks)
        self.made.titles[name] = "experts in a list, each split within"

    def _names(self, site: Site) -> list[str]:
        """The parameters that a product reads."""
        return [self.dims.params[node].name for node in self.dims.sources(site.place[0])]

    def _likely_experts(self) -> set[tuple[str, int]]:
        return {
            (leaf.name, 0)
            for leaf in self.dims.params.values()
            if len(self.shapes[leaf.name]) > 2 and "expert" in leaf.name
        }


def blocks_of(layout: DimLayout) -> tuple[int, ...]:
    """The packed blocks of a dim: how many, or their ratios."""
    sizes: list[int] = []
    for block in layout.blocks:
        size = prod(factor.size for factor in block)
        count = 1 if block[0].axes else block[0].size
        sizes += [size // count] * count
    if len(set(sizes)) == 1:
        return (len(sizes),)
    unit = gcd(*sizes)
    return tuple(size // unit for size in sizes)


def title_of(chain: Chain, sites: Mapping[fx.Node, list[Site]]) -> str:
    """What the dims of a chain are, in a word."""
    kinds = {traits_of(node).kind for node in chain.ops}
    if any(site.lookup for node in chain.ops for site in sites.get(node, ())):
        return "vocabulary"
    if OpKind.LOSS in kinds:
        return "scores that the loss compares"
    products = [node for node in chain.ops if traits_of(node).kind is OpKind.PRODUCT]
    mixes = OpKind.SOFTMAX in kinds and any(node not in sites for node in products)
    if OpKind.ATTENTION in kinds or mixes:
        return HEADS
    return "channels" if OpKind.CONVOLUTION in kinds and not products else "inner width"
