"""What holds of a localized graph: its ops make what their layouts say, on every device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import OpOverload, tree_leaves
from shardlang.ir.device_values import specialise
from shardlang.ir.fakes import fake, fake_mode
from shardlang.ir.mesh import Coord, Mesh
from shardlang.ir.node import info, tensors_of
from shardlang.passes.invariants.invariant import View, invariant

Shapes = tuple[tuple[int, ...], ...]

MOST = 4096
"""How many calls are remembered."""

_MADE: dict[str, Shapes] = {}
"""What a call makes, by its op and its arguments: graphs of one model have most of them alike."""


@invariant
def local_shapes_fit(view: View) -> Iterator[str]:
    """An aten op on the shards of its operands makes shards of the shape that its layout says.

    The ops run on fake tensors at the two ends of the mesh; those that are alike run once.
    """
    with fake_mode(), torch.no_grad():
        for coord in ends_of(view.graph.mesh):
            for node in view.ops:
                if _is_checked(node, view):
                    yield from _fits(node, coord, view)


def ends_of(mesh: Mesh) -> tuple[Coord, Coord]:
    """The coordinates of the first and the last device: the largest and the smallest shards."""
    first = {axis.name: 0 for axis in mesh.axes}
    return first, {axis.name: axis.size - 1 for axis in mesh.axes}


def _is_checked(node: fx.Node, view: View) -> bool:
    """Whether an op's shapes follow from its layouts: not if it draws, or its rows are routed."""
    known = info(node)
    if not isinstance(node.target, OpOverload) or known.random or known.sharding is None:
        return False
    if not known.sharding.axes():
        return False
    return not any(any(view.made(n).orders) for n in (node, *node.all_input_nodes))


def _fits(node: fx.Node, coord: Coord, view: View) -> Iterator[str]:
    assert isinstance(node.target, OpOverload)
    args, kwargs = specialise((node.args, node.kwargs), coord)
    shapes = {n: view.made(n).local_shape(coord) for n in node.all_input_nodes}
    dtypes = {n: tensors_of(n)[0].dtype for n in node.all_input_nodes}
    key = repr((node.target, fx.map_arg((args, kwargs), lambda n: (shapes[n], dtypes[n]))))
    made = _MADE.get(key)
    if made is None:
        fakes = {n: fake(shape, dtypes[n]) for n, shape in shapes.items()}
        try:
            made = _shapes_of(node.target, *fx.map_arg((args, kwargs), fakes.__getitem__))
        except RuntimeError as error:
            yield f"{node} fails on {dict(coord)}: {str(error).splitlines()[0]}"
            return
        _remember(key, made)
    wanted = _wanted(node, coord)
    if made != wanted:
        yield f"{node} makes {made} on {dict(coord)}, and its layout says {wanted}"


def _remember(key: str, made: Shapes) -> None:
    _MADE[key] = made
    if len(_MADE) > MOST:
        del _MADE[next(iter(_MADE))]


def _shapes_of(target: OpOverload, args: Args, kwargs: Kwargs) -> Shapes:
    """The shapes of what a call gives on fake tensors."""
    made = tree_leaves(target(*args, **kwargs))
    return tuple(tuple(value.shape) for value in made if isinstance(value, torch.Tensor))


def _wanted(node: fx.Node, coord: Coord) -> Shapes:
    """The shapes of an op's results on one device, by its sharding."""
    sharding = info(node).sharding
    assert sharding is not None
    count = range(len(sharding.rule.results))
    return tuple(sharding.result(index).local_shape(coord) for index in count)
