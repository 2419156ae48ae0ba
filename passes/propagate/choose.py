"""choose: the factor of an op that nothing above has decided, by bytes per optimizer step.

An op whose operand comes in sharded must either split one of its own factors along that axis or
have the operand gathered. Every legal factor that some operand is sharded on is priced: the bytes
that bring all operands into place, and those that reduce a partial result. No factor is an answer
only if no factor is legal.
"""

from __future__ import annotations

import math

from torch import fx

from shardlang.cost.splits import split_bytes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import result_layout, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import tensors_of
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.rule import Sharding
from shardlang.passes.propagate.adopt import groups_of, merge, writable
from shardlang.passes.propagate.flow import Flow
from shardlang.passes.propagate.sweep import Sweep

Option = dict[str, DimLayout]

LOWERING = 0.01
"""What an element of an op that must be lowered is worth in bytes: of equal ways, the other."""


def choose(flow: Flow, sweep: Sweep) -> bool:
    """Decide every undecided op in topological order; whether any op changed.

    Args:
        sweep: how an op takes what those before it have been given.
    """
    before = len(flow.changes)
    for node in flow.nodes:
        if node.op != "placeholder":
            sweep.forward(node)
            decide(flow, node)
    return len(flow.changes) > before


def decide(flow: Flow, node: fx.Node) -> None:
    """Give one op the cheapest of its options, axis by axis."""
    for axis in flow.graph.mesh.axes:
        options = options_of(flow, node, axis)
        if not options:
            continue
        best = min(options, key=lambda option: (price(flow, node, option), rank(node, option)))
        sharding = sharding_of(node)
        sharding.factors.update(best)
        sharding.origins[axis] = Origin(Reason.CHEAPEST, node.name, len(options))
        flow.note(node)


def options_of(flow: Flow, node: fx.Node, axis: Axis) -> list[Option]:
    """The factors that could carry an axis that some operand is sharded on."""
    sharding = sharding_of(node)
    if axis in sharding.closed or axis in sharding.linear or sharding.factor_of(axis) is not None:
        return []
    options: dict[tuple[str, ...], Option] = {}
    for index, operand in enumerate(flow.dims.operands[node]):
        layout = result_layout(operand)
        if layout.dim_of(axis) is None or flow.is_storage(node, operand, axis):
            continue
        found = sharding.read_operand(index, layout)
        for names in groups_of(sharding.rule, found):
            if axis not in found[names[0]].axes or not set(names) <= flow.open_factors(node):
                continue
            merged = {n: merge(sharding, n, found[n], frozenset([axis]), names) for n in names}
            option: Option = {n: dim for n, dim in merged.items() if dim is not None}
            if len(option) == len(names) and all(axis in d.axes for d in option.values()):
                trial = with_option(sharding, option)
                if writable(trial):
                    options.setdefault(names, option)
    return list(options.values())


def with_option(sharding: Sharding, option: Option) -> Sharding:
    """The sharding with an option taken."""
    return Sharding(sharding.rule, {**sharding.factors, **option}, dict(sharding.linear))


def price(flow: Flow, node: fx.Node, option: Option) -> float:
    """What an option costs: the bytes that it moves, and a little where it must be lowered."""
    trial = with_option(sharding_of(node), option)
    size = sum(math.prod(out.shape) for out in tensors_of(node))
    lowering = LOWERING * size if trial.needs_lowering() else 0.0
    return split_bytes(node, flow.dims.operands[node], trial) + lowering


def rank(node: fx.Node, option: Option) -> tuple[bool, int]:
    """Ties go to an outer factor, then to the order of the rule."""
    rule = sharding_of(node).rule
    name = next(iter(option))
    order = [factor for factor, _ in rule.sizes]
    return name in rule.inner, order.index(name)
