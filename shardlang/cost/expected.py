"""What a call is expected to give where data decides it: what the program's records say."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from shardlang.cost.effects import TensorType
from shardlang.ir.graph import is_item
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info
from shardlang.ir.step import Record, record


def expected(node: fx.Node, coord: Coord, *operands: object) -> object:
    """What a node gives at a coordinate, with equal shares of rows that data shares out.

    An op under autograd is taken to keep the operands and results that have a gradient.

    Raises:
        ValueError: the program does not say how a result lies.
    """
    if node.target is not record:
        return _value(node, coord)
    items = {user.args[1]: user for user in node.users if is_item(user)}
    count = max(place for place in items if isinstance(place, int))
    results = [_value(items[i], coord) if i in items else None for i in range(count)]
    *_, wanted, given = node.args
    made = [one for one in results if one is not None]
    return (*results, Record(_picked(operands, wanted), _picked(made, given)))


def _picked(values: Sequence[object], places: object) -> list[Tensor]:
    assert isinstance(places, (tuple, list))
    return [one for i in places if isinstance(one := values[i], Tensor)]


def _value(node: fx.Node, coord: Coord) -> Tensor:
    known = info(node)
    if not isinstance(known.layout, Layout) or not isinstance(known.value, Tensor):
        raise ValueError(f"nothing says how `{node}` lies")
    return TensorType.dense(known.layout.local_shape(coord), known.value.dtype).made()
