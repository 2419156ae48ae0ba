"""What holds of the assignments of mesh axes to factors, from propagation on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from shardlang.ir.graph import constrain
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.records import Stated
from shardlang.ir.rule import Sharding
from shardlang.passes.invariants.invariant import View, invariant, invariant_of_ops


@invariant
def statements_valid(view: View) -> Iterator[str]:
    """A stated layout has the shape of its value, and uses an axis once."""
    for node in view.nodes:
        stated, value = info(node).stated, info(node).value
        if stated is None or not isinstance(value, torch.Tensor):
            continue
        layout = stated.layout
        if layout.shape != tuple(value.shape):
            yield f"{node} is {tuple(value.shape)}, stated as {layout}"
        used = [axis for dim in layout.dims for axis in dim.axes] + list(layout.partial)
        if len(set(used)) < len(used):
            yield f"{node}: {layout} uses an axis twice"


@invariant
def statements_kept(view: View) -> Iterator[str]:
    """A stated dim has its stated layout, but for what storage adds to a parameter at rest."""
    for node, sharding in view.sharded:
        stated = info(node).stated
        if stated is not None:
            yield from _statement_kept(node, sharding, stated)


def _statement_kept(node: fx.Node, sharding: Sharding, stated: Stated) -> Iterator[str]:
    layout = sharding.result()
    for index, dim in enumerate(stated.layout.dims):
        if index not in stated.open and layout.dims[index] != dim:
            yield f"{node}: dim {index} is {layout.dims[index]}, stated as {dim} at {stated.place}"
    if layout.partial != stated.layout.partial:
        yield f"{node} is {layout}, stated as {stated.layout} at {stated.place}"


@invariant_of_ops
def one_factor_per_axis(node: fx.Node, view: View) -> Iterator[str]:
    """An axis splits one factor of an op (or factors that stand side by side), and no whole one."""
    sharding = info(node).sharding
    if sharding is not None and sharding.axes():
        yield from _one_factor(node, sharding)


def _one_factor(node: fx.Node, sharding: Sharding) -> Iterator[str]:
    partial = frozenset(sharding.linear) | sharding.partial_axes()
    for index in range(len(sharding.rule.results) if partial else 0):
        layout = sharding.result(index)
        if not layout.partial.isdisjoint(layout.sharded):
            yield f"{node}: result {index} is {layout}, split and partial over one axis"
    linked = {name: group for group in sharding.rule.linked for name in group}
    seen: dict[Axis, str] = {}
    for name, dim in sharding.factors.items():
        if dim.axes and name in sharding.rule.whole:
            yield f"{node}: factor `{name}` is split, and must be whole"
        for axis in dim.axes:
            other = seen.setdefault(axis, name)
            if other not in linked.get(name, (name,)):
                yield f"{node}: `{axis}` splits both `{other}` and `{name}`"


@invariant
def storage_kept(view: View) -> Iterator[str]:
    """A stored parameter is split over axes of its storage beside those of its use, minor to them.

    Without a use it has no layout but the one at rest.
    """
    for node, leaf in view.graph.placeholders():
        if not leaf.store:
            continue
        used = [view.made(user) for user in node.users if user.target is constrain]
        if not used:
            continue
        rest = view.made(node)
        added = set(rest.sharded) - set(used[0].sharded)
        if not added <= set(leaf.store):
            yield f"`{leaf.name}` is {rest} at rest, and is stored over {leaf.store}"
        if rest.without(added) != used[0]:
            yield f"`{leaf.name}` is {rest} at rest and {used[0]} in use"


@invariant
def layouts_recorded(view: View) -> Iterator[str]:
    """The plan's record of a leaf is its layout, or the one that is stated for its use."""
    for node, leaf in view.graph.placeholders():
        uses = [user for user in node.users if user.target is constrain]
        layouts = {view.made(each) for each in (node, *uses)}
        noted = view.graph.info.layouts.get(node.name)
        if noted not in layouts:
            yield f"`{leaf.name}` is {view.made(node)}, recorded as {noted}"


@invariant_of_ops
def nothing_to_lower(node: fx.Node, view: View) -> Iterator[str]:
    """No op is split along a factor along which it cannot be split as it stands."""
    sharding = info(node).sharding
    if sharding is None:
        return
    for name in sharding.rule.lowered:
        if sharding.factors[name].axes:
            yield f"{node} is split along `{name}`, and has no program for that"
