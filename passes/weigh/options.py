"""The ways in which one op may be split over one axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from torch import fx

from shardlang.cost.readings import wanted_from
from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.graph import sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.rule import Rule, Sharding
from shardlang.passes.propagate.adopt import groups_of, merge, writable


@dataclass(frozen=True, slots=True)
class Option:
    """One way to split an op; its sharding is not changed any more.

    Attributes:
        varying: axes along which a whole result's gradient may stay a summand on every device: the
            op passes it on to what it reads.
        wants: the labelled layout of every operand.
        makes: the layout of every result.
    """

    sharding: Sharding
    varying: frozenset[Axis] = frozenset()
    wants: tuple[Layout, ...] = field(init=False)
    makes: tuple[Layout, ...] = field(init=False)

    def __post_init__(self) -> None:
        rule = self.sharding.rule
        split = {*self.sharding.axes(), *self.sharding.linear, *self.varying}
        wants = (
            self.sharding.operand(i).unlabelled() if rule.detached
            else wanted_from(self.sharding.operand(i), split)
            for i in range(len(rule.operands))
        )  # fmt: skip
        object.__setattr__(self, "wants", tuple(wants))
        made = (self.sharding.result(i) for i in range(len(rule.results)))
        makes = tuple(Layout(one.dims, one.partial, self.varying) for one in made)
        object.__setattr__(self, "makes", makes)

    @property
    def key(self) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
        """What tells it from others: the layouts that it wants and makes."""
        return self.wants, self.makes

    def flops(self) -> int:
        """Operations of the forward on the busiest device."""
        return self.sharding.flops()


def varying(node: fx.Node, options: list[Option], axis: Axis) -> list[Option]:
    """The same ways, and an op that is not split with a gradient that is not summed up yet."""
    if node.op == "placeholder" or not info(node).differentiable:
        return options
    whole = (one for one in options if axis not in {*one.sharding.axes(), *one.sharding.linear})
    return [*options, *(Option(one.sharding, frozenset([axis])) for one in whole)]


def as_it_is(node: fx.Node) -> Option:
    """The way in which an op is split now."""
    return Option(_copy(sharding_of(node)))


def unsplit(node: fx.Node, axis: Axis) -> Sharding:
    """The sharding of an op without one axis."""
    now = sharding_of(node)
    return replace(
        now,
        factors={name: dim.without([axis]) for name, dim in now.factors.items()},
        linear={other: slots for other, slots in now.linear.items() if other != axis},
        origins=dict(now.origins),
    )


def by_factors(node: fx.Node, axis: Axis, open_factors: set[str]) -> Iterator[Option]:
    """Every open factor that may carry an axis contiguously, as minor to what splits it already."""
    base = unsplit(node, axis)
    tied = {name for pair in base.rule.tied for name in pair}
    sizes = dict(base.rule.sizes)
    every = {name: DimLayout.shard(sizes[name], (axis,)) for name in sizes if sizes[name] > 1}
    for names in groups_of(base.rule, every):
        if not tied.isdisjoint(names) or not open_factors.issuperset(names):
            continue
        if all(base.factors[name].plain for name in names):
            wanted = {n: DimLayout.shard(sizes[n], (*base.factors[n].axes, axis)) for n in names}
            if all(map(all_shards_nonempty, wanted.values())):
                yield from _with(base, wanted)


def by_operand(
    node: fx.Node, slot: int, layout: Layout, axis: Axis, open_factors: set[str]
) -> Iterator[Option]:
    """The ways to read an operand that is split over an axis so."""
    return _by_first(node, axis, open_factors, lambda base: base.read_operand(slot, layout))


def by_result(
    node: fx.Node, index: int, layout: Layout, axis: Axis, open_factors: set[str]
) -> Iterator[Option]:
    """The ways to make a result that is split over an axis so."""
    return _by_first(node, axis, open_factors, lambda base: base.read_result(index, layout))


def by_sum(node: fx.Node, slot: int, axis: Axis) -> Iterator[Option]:
    """The ways to pass a partial sum on."""
    base = unsplit(node, axis)
    for slots in base.rule.linear:
        if slot in slots:
            yield Option(replace(base, linear={**base.linear, axis: slots}))


def _by_first(
    node: fx.Node,
    axis: Axis,
    open_factors: set[str],
    read: Callable[[Sharding], dict[str, DimLayout]],
) -> Iterator[Option]:
    """The ways to take what is read, in the first notation that has any."""
    ways = (list(_taken(b, read(b), axis, open_factors)) for b in _notations(unsplit(node, axis)))
    yield from next(filter(None, ways), ())


def _notations(base: Sharding) -> Iterator[Sharding]:
    """A sharding by the op's own rule, then by its others."""
    yield base
    for rule in base.rule.others:
        other = base.under(rule)
        if other is not None:
            yield other


def _taken(
    base: Sharding, found: dict[str, DimLayout], axis: Axis, open_factors: set[str]
) -> Iterator[Option]:
    allowed = open_factors if base.rule.notation == 0 else _open(base.rule)
    found = _with_linked(base, found, axis)
    for names in groups_of(base.rule, found):
        if axis not in found[names[0]].axes or not allowed.issuperset(names):
            continue
        merged = {n: merge(base, n, found[n], frozenset([axis]), names) for n in names}
        news = {n: dim for n, dim in merged.items() if dim is not None}
        if len(news) == len(names) and all(axis in dim.axes for dim in news.values()):
            yield from _with(base, news)


def _with_linked(base: Sharding, found: dict[str, DimLayout], axis: Axis) -> dict[str, DimLayout]:
    """The factors found, and contiguous ones for those that stand beside one of them in a dim."""
    more: dict[str, DimLayout] = {}
    for group in base.rule.linked:
        if any(name in found and axis in found[name].axes for name in group):
            missing = (name for name in group if name not in found and base.factors[name].plain)
            for name in missing:
                dim = base.factors[name]
                more[name] = DimLayout.shard(dim.size, (*dim.axes, axis))
    return {**found, **more}


def _open(rule: Rule) -> set[str]:
    return {name for name, _ in rule.sizes} - rule.whole


def _with(base: Sharding, factors: dict[str, DimLayout]) -> Iterator[Option]:
    made = replace(
        base,
        factors={**base.factors, **factors},
        linear=dict(base.linear),
        origins=dict(base.origins),
    )
    if writable(made) and all(_reads_contiguously(made, pair) for pair in made.rule.tied):
        yield Option(made)


def _reads_contiguously(made: Sharding, pair: tuple[str, str]) -> bool:
    """Whether a dim and the one that it reads beyond its edges are split alike and contiguously."""
    one, other = (made.factors[name] for name in pair)
    return one.axes == other.axes and one.plain and other.plain


def _copy(sharding: Sharding) -> Sharding:
    return replace(
        sharding,
        factors=dict(sharding.factors),
        linear=dict(sharding.linear),
        origins=dict(sharding.origins),
    )
