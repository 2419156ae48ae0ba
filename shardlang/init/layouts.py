"""From the plans and the structure of a model to a layout for each of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import gcd, prod

from torch import fx

from shardlang.init.chains import Chain, Dims
from shardlang.init.choose import Kind, Site, all_chains, best, gain_of, kinds_of, sites_of
from shardlang.init.names import generic
from shardlang.init.plans import Wishes
from shardlang.ir.graph import ShardGraph
from shardlang.ir.layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.passes.align_units import in_units

ENOUGH = 0.9
"""The part of the bytes of all matrices that is split at least, if the sizes allow it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How one dim is split: over which axis, as how many packed blocks (or in which ratios)."""

    axis: str
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
        return 100.0 * split / max(sum(self.matrices.values()), 1)

    @property
    def whole(self) -> list[str]:
        """The matrices that no statement splits, the largest first."""
        left = [name for name in self.matrices if name not in self.entries]
        return sorted(left, key=lambda name: -self.matrices[name])


def lay_out(graph: ShardGraph, axis: Axis | None, experts: Axis | None, wishes: Wishes) -> Layouts:
    """Choose the layout of every parameter over the model axis, and of experts over theirs."""
    work = _Work(Dims(graph), axis or Axis("none", 1), wishes)
    if axis is not None:
        work.choose()
        work.complete()
    if experts is not None:
        work.place_experts(experts)
    return work.made


class _Work:
    """One choice of layouts."""

    def __init__(self, dims: Dims, axis: Axis, wishes: Wishes) -> None:
        self.dims, self.axis, self.wishes = dims, axis, wishes
        self.sites = sites_of(dims)
        self.shapes = {
            leaf.name: tuple(node.meta["val"].shape) for node, leaf in dims.params.items()
        }
        self.nodes = {leaf.name: node for node, leaf in dims.params.items()}
        self.made = Layouts(matrices=self._matrices())

    def _matrices(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for site in self.sites:
            for node in () if site.lookup else self.dims.sources(site.place[0]):
                leaf = self.dims.params[node]
                if len(self.shapes[leaf.name]) > 1 and not _is_convolution(site.node):
                    found[leaf.name] = prod(self.shapes[leaf.name]) * leaf.dtype.itemsize
        return found

    def choose(self) -> None:
        """State the chains whose choice gains the most."""
        by_node: dict[fx.Node, list[Site]] = {}
        for site in self.sites:
            by_node.setdefault(site.node, []).append(site)
        chains = all_chains(self.dims, self.sites, self.axis)
        firm = {pair for pair, is_firm in self.wishes.dims.items() if is_firm}
        gains = [gain_of(self.dims, chain, by_node, firm) for chain in chains]
        kinds = kinds_of(chains, {name: generic(name) for name in self.shapes}, gains)
        for index in best(kinds):
            self._state(kinds[index], by_node)

    def _state(self, kind: Kind, by_node: Mapping[fx.Node, list[Site]]) -> None:
        for chain in kind.chains:
            title = title_of(chain, by_node)
            for (name, dim), layout in chain.params.items():
                entry = self._entry(name, dim, layout)
                if entry is not None:
                    self.made.entries.setdefault(name, {})[dim] = entry
                    self.made.titles.setdefault(name, title)

    def _entry(self, name: str, dim: int, layout: DimLayout) -> Entry | None:
        """The entry that gives a dim this layout; None where the language has none."""
        blocks = blocks_of(layout)
        size = self.shapes[name][dim]
        total = sum(blocks) if len(blocks) > 1 else blocks[0]
        if size % total:
            return None
        plain = DimLayout.shard(size, layout.axes, blocks if len(blocks) > 1 else blocks[0])
        written = in_units(plain, self.dims.unit((self.nodes[name], 0, dim)))
        return (
            Entry(self.axis.name, blocks if blocks != (1,) else ()) if written == layout else None
        )

    def complete(self) -> None:
        """Split more matrices by their rows, the largest first, until enough is split."""
        for name in self.made.whole:
            if self.made.percent >= 100 * ENOUGH:
                return
            dims = self._rows(name)
            if dims:
                self.made.entries[name] = {dims[0]: Entry(self.axis.name)}
                self.made.titles[name] = "also split, with their results gathered"

    def _rows(self, name: str) -> list[int]:
        """Dims that can be split, those of the result first."""
        node = self.nodes[name]
        sites = [s for s in self.sites if node in self.dims.sources(s.place[0])]
        inner = {dim for site in sites if site.place[0] is node for dim in site.inner}
        order = sorted(range(len(self.shapes[name])), key=lambda dim: (dim in inner, dim))
        return [d for d in order if self.dims.seed((node, 0, d), self.axis) is not None]

    def place_experts(self, axis: Axis) -> None:
        """Split the experts, those that the plan names or that look like some, over their axis."""
        for name, dim in self.wishes.experts or self._likely_experts():
            if self.shapes[name][dim] >= axis.size:
                self.made.entries.setdefault(name, {})[dim] = Entry(axis.name)
                self.made.titles.setdefault(name, "experts")

    def _likely_experts(self) -> set[tuple[str, int]]:
        return {
            (name, 0) for name, shape in self.shapes.items() if len(shape) > 2 and "expert" in name
        }


def blocks_of(layout: DimLayout) -> tuple[int, ...]:
    """The packed blocks of a dim: how many, or their ratios."""
    if len(layout.blocks) == 1:
        first = layout.blocks[0][0]
        return (1,) if first.axes else (first.size,)
    sizes = [prod(factor.size for factor in block) for block in layout.blocks]
    unit = gcd(*sizes)
    return tuple(size // unit for size in sizes)


def title_of(chain: Chain, sites: Mapping[fx.Node, list[Site]]) -> str:
    """What the dims of a chain are, in a word."""
    targets = {str(node.target) for node in chain.ops}
    looked_up = any(site.lookup for node in chain.ops for site in sites.get(node, ()))
    if looked_up or any("cross_entropy" in target or "nll" in target for target in targets):
        return "vocabulary"
    if any("attention" in target for target in targets) or _is_attention(targets):
        return "attention heads"
    return "inner width"


def _is_attention(targets: Iterable[str]) -> bool:
    """Whether a chain runs through a product of two activations and a softmax."""
    words = " ".join(targets)
    return "softmax" in words and any(op in words for op in ("matmul", "bmm", "einsum"))


def _is_convolution(node: fx.Node) -> bool:
    return "conv" in str(node.target)
