"""What an op rule says about one call: how its operands' and results' dims share factors.

A *factor* is a run of indices that operands and results of one op have in common: the row index of
a matmul, say. Sharding an op means sharding its factors; the layouts that the op needs and gives
follow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from shardlang.ir.collective import ReduceOp
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.origin import Origin
from shardlang.ir.regroup import join_blocks, join_factors, split_blocks, split_factors
from shardlang.ir.traits import Traits

_ONE = DimLayout.whole(1)

DimSpec = tuple[tuple[str, ...], ...]
"""Blocks of factor names, major to minor; a size-1 broadcast dim is one empty block."""


@dataclass(frozen=True, slots=True)
class Operand:
    """One tensor operand: the factors of each of its dims.

    `added` marks an operand that is added to a contraction (a bias): it must be partial where the
    contraction is.
    """

    dims: tuple[DimSpec, ...]
    added: bool = False

    @property
    def factors(self) -> frozenset[str]:
        """Every factor in the operand."""
        return _factors_of((self.dims,))


@dataclass(frozen=True, slots=True)
class Product:
    """A product of matrices inside an op.

    Attributes:
        factors: those over which it multiplies and adds.
        sides: the operands from which each of its two matrices is made.
    """

    factors: frozenset[str]
    sides: tuple[frozenset[int], frozenset[int]]


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of one call.

    Attributes:
        operands: the tensor operands in schema order.
        results: the tensor results.
        sizes: global size of each factor.
        whole: factors that must not be sharded.
        lowered: factors that may be sharded only by rewriting the op into simpler ones.
        linear: sets of operands in which the op is jointly linear (the others fixed).
        reduce: how the shards of an inner factor combine; a sum is left partial.
        passes: whether the op only carries its factors along (pointwise, views), which lets
            layouts flow through it before contractions are looked at.
        random: whether the op draws random numbers.
        detached: whether no gradient flows from its results to its operands.
        linked: factors that must be split over the same axes: those side by side in one dim, and
            the tied ones.
        tied: pairs of factors of different sizes, each split contiguously where the other is (the
            rows of an image before and after a convolution).
        traits: what else is known of the call.
        others: rules of the same call in other factors, for layouts that this rule cannot read.
        notation: 0 for the rule that the op declares, n for the n-th of its `others`.
        products: the products of matrices in the op.
    """

    operands: tuple[Operand, ...]
    results: tuple[tuple[DimSpec, ...], ...]
    sizes: tuple[tuple[str, int], ...]
    whole: frozenset[str] = frozenset()
    lowered: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    reduce: ReduceOp = ReduceOp.SUM
    passes: bool = True
    random: bool = False
    detached: bool = False
    linked: tuple[tuple[str, ...], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    traits: Traits = field(default_factory=Traits)
    others: tuple[Rule, ...] = ()
    notation: int = 0
    products: tuple[Product, ...] = ()

    def flops(self, sizes: Mapping[str, int] | None = None) -> int:
        """Floating-point operations of the forward: two for each multiply-add of a product.

        A product of `m k` and `k n` takes 2 m k n (Golub and Van Loan, Matrix Computations, 1.1);
        what is done element by element is not counted. The gradient of each operand takes as many.

        Args:
            sizes: the size of each factor, such as that of a device's shard; default: the whole.
        """
        known = dict(self.sizes) if sizes is None else sizes
        return sum(_flops(product, known) for product in self.products)

    def backward_flops(self, wanted: Collection[int]) -> int:
        """Those of the gradients of the `wanted` operands, of the whole op.

        Each matrix of a product that is made from one of them takes a product of its own.
        """
        sizes = dict(self.sizes)
        return sum(
            _flops(product, sizes) * sum(not side.isdisjoint(wanted) for side in product.sides)
            for product in self.products
        )

    def in_turn(self) -> tuple[Product, ...]:
        """The products, where the first operand meets the others in turn."""
        places = [i for i, operand in enumerate(self.operands) if not operand.added]
        factors = [self.operands[i].factors for i in places]
        products, made = list[Product](), factors[0] if factors else frozenset()
        for turn, other in enumerate(factors[1:], 1):
            sides = frozenset(places[:turn]), frozenset([places[turn]])
            products.append(Product(made | other, sides))
            made = products[-1].factors & self.outer.union(*factors[turn + 1 :])
        return tuple(products)

    def kept(self, wanted: Iterable[int]) -> frozenset[int]:
        """The operands whose values the backward reads for the gradients of the `wanted` ones.

        Unless the traits say otherwise, the gradient of an operand in which the op is linear reads
        the operands that are fixed beside it, and any other gradient reads all operands.
        """
        wanted = list(wanted)
        if self.traits.is_view or not wanted:
            return frozenset()
        if self.traits.keeps is not None:
            return self.traits.keeps
        return frozenset().union(*(self._fixed_beside(index) for index in wanted))

    def _fixed_beside(self, index: int) -> frozenset[int]:
        linear = [chosen for chosen in self.traits.affine if index in chosen]
        everything = frozenset(range(len(self.operands)))
        return everything - max(linear, key=len) if linear else everything

    @property
    def repeats(self) -> bool:
        """Whether the lowering only repeats operands: layouts flow through `lowered` factors."""
        return self.notation > 0

    @property
    def may_be_empty(self) -> frozenset[str]:
        """Factors of which a device may have no index: tied ones that only carry what they read."""
        pairs = self.tied if self.repeats else ()
        carried = (pair for pair in self.tied if self.lowered.isdisjoint(pair))
        return frozenset(name for pair in (*pairs, *carried) for name in pair)

    def size(self, factor: str) -> int:
        """The global size of a factor."""
        return next(size for name, size in self.sizes if name == factor)

    @property
    def outer(self) -> frozenset[str]:
        """Factors that some result has."""
        return _factors_of(self.results)

    @property
    def inner(self) -> frozenset[str]:
        """Factors that operands alone have: sharding one makes the results partial.

        A factor that is linked to a result's (`[pre|mid] -> mid`), be it through others, is split
        together with it, and so leaves nothing to add up.
        """
        return _inner(self.results, self.linked, self.sizes)


@lru_cache(maxsize=4096)
def _inner(
    results: tuple[tuple[DimSpec, ...], ...],
    linked: tuple[tuple[str, ...], ...],
    sizes: tuple[tuple[str, int], ...],
) -> frozenset[str]:
    outer, beside = _factors_of(results), set[str]()
    while (
        joined := {
            name
            for group in linked
            if not outer.isdisjoint(group) or not beside.isdisjoint(group)
            for name in group
        }
        - beside
    ):
        beside |= joined
    return frozenset(name for name, _ in sizes) - outer - beside


def _flops(product: Product, sizes: Mapping[str, int]) -> int:
    return 2 * math.prod(sizes[name] for name in product.factors)


def _factors_of(tensors: Iterable[tuple[DimSpec, ...]]) -> frozenset[str]:
    return frozenset(f for dims in tensors for dim in dims for block in dim for f in block)


@dataclass(slots=True)
class Sharding:
    """How one op is split: a layout for each factor, and the axes that pass partial sums."""

    rule: Rule
    factors: dict[str, DimLayout]
    linear: dict[Axis, frozenset[int]] = field(default_factory=dict)
    origins: dict[Axis, Origin] = field(default_factory=dict)
    closed: frozenset[Axis] = frozenset()

    @staticmethod
    def whole(rule: Rule) -> Sharding:
        """Nothing sharded yet."""
        return Sharding(rule, {name: DimLayout.whole(size) for name, size in rule.sizes})

    def copied(self) -> Sharding:
        """The same, to be changed apart from this one."""
        return replace(
            self,
            factors=dict(self.factors),
            linear=dict(self.linear),
            origins=dict(self.origins),
        )

    def axes(self) -> tuple[Axis, ...]:
        """Axes that split some factor."""
        seen: dict[Axis, None] = {}
        for dim in self.factors.values():
            seen.update(dict.fromkeys(dim.axes))
        return tuple(seen)

    def factor_of(self, axis: Axis) -> str | None:
        """The factor that `axis` splits."""
        return next((name for name, dim in self.factors.items() if axis in dim.axes), None)

    def compose(self, spec: DimSpec) -> DimLayout | None:
        """The layout of a dim made of these factors; None where it cannot be written."""
        if len(spec) == 1 and len(spec[0]) < 2:
            return self.factors[spec[0][0]] if spec[0] else _ONE
        blocks = []
        for block in spec:
            joined = join_factors([self.factors[name] for name in block])
            if joined is None:
                return None
            blocks.append(joined)
        return join_blocks(blocks) if len(blocks) > 1 else blocks[0]

    def _layout(self, dims: Iterable[DimSpec], partial: frozenset[Axis]) -> Layout:
        composed: list[DimLayout] = []
        for spec in dims:
            dim = self.compose(spec)
            assert dim is not None, f"{spec} cannot be written"
            composed.append(dim)
        return Layout(tuple(composed), partial)

    def operand(self, index: int) -> Layout:
        """The layout that operand `index` must have."""
        operand = self.rule.operands[index]
        partial = {axis for axis, which in self.linear.items() if index in which}
        if operand.added:
            partial |= self.inner_axes()
        return self._layout(operand.dims, frozenset(partial))

    def result(self, index: int = 0) -> Layout:
        """The layout in which result `index` comes out (with `reduce` other than sum: reduced)."""
        partial = frozenset(self.linear) | self.partial_axes()
        return self._layout(self.rule.results[index], partial)

    def inner_axes(self) -> frozenset[Axis]:
        """Axes that split an inner factor."""
        return frozenset(axis for name in self.rule.inner for axis in self.factors[name].axes)

    def partial_axes(self) -> frozenset[Axis]:
        """Axes along which the results are partial sums because an inner factor is split."""
        return self.inner_axes() if self.rule.reduce is ReduceOp.SUM else frozenset()

    def flops(self) -> int:
        """Floating-point operations of the forward on the device with the largest part."""
        return self.rule.flops({name: dim.max_local_size() for name, dim in self.factors.items()})

    def needs_lowering(self) -> bool:
        """Whether a factor is split that the op cannot be split along as it stands."""
        return any(self.factors[name].axes for name in self.rule.lowered)

    def under(self, rule: Rule) -> Sharding | None:
        """The same split, in the factors of another rule of the call; None if they cannot."""
        made = replace(self.copied(), rule=rule, factors=Sharding.whole(rule).factors)
        for index in range(len(rule.operands)):
            made.factors.update(made.read_operand(index, self.operand(index)))
        for index in range(len(rule.results)):
            made.factors.update(made.read_result(index, self.result(index)))
        split = {name for name, dim in made.factors.items() if dim.axes}
        return made if made._dims() == self._dims() and not rule.whole & split else None

    def _dims(self) -> list[DimLayout | None]:
        """The dims of the operands and of the results."""
        tensors = (*(operand.dims for operand in self.rule.operands), *self.rule.results)
        return [self.compose(spec) for dims in tensors for spec in dims]

    def read_operand(self, index: int, layout: Layout) -> dict[str, DimLayout]:
        """The factor layouts that an operand layout suggests."""
        return self._with_tied(self._read(self.rule.operands[index].dims, layout))

    def read_result(self, index: int, layout: Layout) -> dict[str, DimLayout]:
        """The factor layouts that a wanted result layout suggests."""
        return self._with_tied(self._read(self.rule.results[index], layout))

    def _with_tied(self, found: dict[str, DimLayout]) -> dict[str, DimLayout]:
        """The factors found, and those tied to the contiguous ones among them.

        Where layouts flow through the op, also those that are tied to these in turn.
        """
        tied = self.rule.tied
        for pair in tied * len(tied) if self.rule.repeats else tied:
            for one, other in (pair, pair[::-1]):
                if one in found and other not in found and found[one].plain:
                    found[other] = DimLayout.shard(self.rule.size(other), found[one].axes)
        return found

    def _read(self, dims: Iterable[DimSpec], layout: Layout) -> dict[str, DimLayout]:
        found: dict[str, DimLayout] = {}
        for spec, dim in zip(dims, layout.dims, strict=True):
            if not dim.axes:
                continue
            sizes = tuple(self._block_size(block) for block in spec)
            shards, _ = split_blocks(dim, sizes)
            for block, shard in zip(spec, shards, strict=True):
                if not block:
                    continue
                digits, _ = split_factors(shard, tuple(self.rule.size(name) for name in block))
                found.update(
                    (name, digit) for name, digit in zip(block, digits, strict=True) if digit.axes
                )
        return found

    def _block_size(self, block: tuple[str, ...]) -> int:
        size = 1
        for name in block:
            size *= self.rule.size(name)
        return size
