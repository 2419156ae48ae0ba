"""Adoption: what an op takes of the factor layouts that a neighbour suggests."""

from __future__ import annotations

from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.rule import Rule, Sharding


def adopt(
    sharding: Sharding, found: dict[str, DimLayout], axes: frozenset[Axis], source: str
) -> bool:
    """Lay out factors that are split together as is suggested, if all fit; whether any changed."""
    merged = {n: merge(sharding, n, dim, axes, tuple(found)) for n, dim in found.items()}
    news: dict[str, DimLayout] = {n: dim for n, dim in merged.items() if dim is not None}
    if len(news) < len(found) or all(sharding.factors[n] == dim for n, dim in news.items()):
        return False
    if len({dim.axes for dim in news.values()}) > 1:
        return False
    before = dict(sharding.factors)
    sharding.factors.update(news)
    if not writable(sharding):
        sharding.factors = before
        return False
    for name, dim in news.items():
        for axis in set(dim.axes) - set(before[name].axes):
            sharding.origins[axis] = Origin(Reason.FLOWS, source)
    return True


def merge(
    sharding: Sharding, name: str, found: DimLayout, axes: frozenset[Axis], group: tuple[str, ...]
) -> DimLayout | None:
    """The suggestion cut down to the axes that may be added here; None if nothing new fits."""
    current = sharding.factors[name]
    elsewhere = {a for n, dim in sharding.factors.items() if n not in group for a in dim.axes}
    blocked = elsewhere | sharding.closed | set(sharding.linear)
    keep = [a for a in found.axes if a in current.axes or (a in axes and a not in blocked)]
    wanted = found.only(keep)
    fits = all_shards_nonempty(wanted) or name in sharding.rule.may_be_empty
    return wanted if fits and wanted.only(current.axes) == current else None


def writable(sharding: Sharding) -> bool:
    """Whether every dim of every operand and result can be written with these factor layouts."""
    rule = sharding.rule
    specs = [spec for operand in rule.operands for spec in operand.dims]
    specs += [spec for dims in rule.results for spec in dims]
    return all(sharding.compose(spec) is not None for spec in specs)


def reads_all(found: dict[str, DimLayout], layout: Layout) -> bool:
    """Whether the factor layouts that an op reads in a layout have all its axes."""
    return {axis for dim in found.values() for axis in dim.axes}.issuperset(layout.sharded)


def together(rule: Rule, found: dict[str, DimLayout]) -> dict[str, DimLayout]:
    """Those of the factors found that can be adopted."""
    return {name: found[name] for names in groups_of(rule, found) for name in names}


def groups_of(rule: Rule, found: dict[str, DimLayout]) -> list[tuple[str, ...]]:
    """Factors to adopt together: linked ones all at once or not at all, others alone."""
    linked = {name: group for group in rule.linked for name in group}
    groups: dict[tuple[str, ...], None] = {}
    for name in found:
        group = linked.get(name, (name,))
        if all(member in found for member in group):
            groups[group] = None
    return list(groups)
