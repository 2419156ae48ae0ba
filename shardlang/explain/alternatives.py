"""The other ways to split an op along an axis, and what each would move."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from shardlang.cost.splits import split_bytes
from shardlang.explain.types import Alternative
from shardlang.ir.collective import ReduceOp
from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.graph import result_layout, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.rule import DimSpec, Rule, Sharding
from shardlang.passes.propagate.adopt import writable
from shardlang.passes.propagate.choose import Option, with_option
from shardlang.passes.propagate.flow import Flow
from shardlang.rules.call import Call


def alternatives(flow: Flow, node: fx.Node, axis: Axis) -> tuple[Alternative, ...]:
    """Every way to split one op along an axis, cheapest first.

    The bytes are those that bring its operands, as they lie now, into place, and that reduce a
    partial result, forward and backward (`split_bytes`). The graph is only read.
    """
    sharding = sharding_of(node)
    if node.op == "placeholder" or axis in sharding.linear:
        return ()
    bare = without_axis(sharding, axis)
    now = sharding.factor_of(axis)
    operands = flow.dims.operands[node]
    found = [
        Alternative(_text(node, bare.rule, names), round(cost), now in names)
        for names, option in splits(flow, node, sharding, axis)
        if math.isfinite(cost := split_bytes(node, operands, with_option(bare, option)))
    ]
    return tuple(sorted(found, key=lambda way: (way.bytes, not way.chosen)))


def without_axis(sharding: Sharding, axis: Axis) -> Sharding:
    """The same sharding with an axis taken away."""
    factors = {name: dim.without([axis]) for name, dim in sharding.factors.items()}
    return Sharding(sharding.rule, factors, dict(sharding.linear))


def splits(
    flow: Flow, node: fx.Node, sharding: Sharding, axis: Axis
) -> Iterator[tuple[tuple[str | None, ...], Option]]:
    """The factors that the axis could split, those that go together as one."""
    rule, bare = sharding.rule, without_axis(sharding, axis)
    linked = {name: group for group in rule.linked for name in group}
    seen: set[str] = set()
    for name, _ in rule.sizes:
        if name in seen or name in rule.whole:
            continue
        names = linked.get(name, (name,))
        seen.update(names)
        option = {n: _split(flow, node, sharding, n, axis) for n in names}
        dims: Option = {n: dim for n, dim in option.items() if dim is not None}
        if len(dims) == len(names) and writable(with_option(bare, dims)):
            yield names, dims
    yield (None,), {}


def _split(
    flow: Flow, node: fx.Node, sharding: Sharding, name: str, axis: Axis
) -> DimLayout | None:
    """A factor split over an axis too: as it is, as an operand comes, or evenly."""
    if axis in sharding.factors[name].axes:
        return sharding.factors[name]
    bare = sharding.factors[name].without([axis])
    for index, operand in enumerate(flow.dims.operands[node]):
        found = sharding.read_operand(index, result_layout(operand)).get(name)
        if found is not None and axis in found.axes and found.only([*bare.axes, axis]):
            wanted = found.only([*bare.axes, axis])
            if wanted.without([axis]) == bare and all_shards_nonempty(wanted):
                return wanted
    if not bare.plain:
        return None
    made = DimLayout.shard(bare.size, (*bare.axes, axis))
    return made if all_shards_nonempty(made) else None


def _text(node: fx.Node, rule: Rule, names: tuple[str | None, ...]) -> str:
    """Which dims a way splits."""
    if names == (None,):
        return "not split: every device does all of it"
    slots = [slot.name for slot in Call(node).slots]
    places = []
    for number, dims in enumerate(rule.results):
        which = "the result" if len(rule.results) == 1 else f"result {number}"
        places += [f"dim {d} of {which}" for d in _dims_with(dims, names)]
    for operand, slot in zip(rule.operands, slots, strict=True):
        places += [f"dim {d} of `{slot}`" for d in _dims_with(operand.dims, names)]
    inner = any(name in rule.inner for name in names) and rule.reduce is ReduceOp.SUM
    return ", ".join(places) + (", leaving a partial sum" if inner else "")


def _dims_with(dims: tuple[DimSpec, ...], names: tuple[str | None, ...]) -> list[int]:
    return [d for d, spec in enumerate(dims) if any(f in names for block in spec for f in block)]
