"""The reshards in a graph's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lark import Token
from torch import Tensor, fx
from torch.fx.node import Argument

from shardlang.ir.collective import ReduceOp
from shardlang.ir.experts.route import Route
from shardlang.ir.node import info
from shardlang.ir.parse_calls import Made
from shardlang.ir.parse_clauses import Pair, Said
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.parse_types import Axes, Type
from shardlang.ir.reads import Reads
from shardlang.ir.reshard import NoChange, Reshard, apply_reshard, apply_reshards
from shardlang.ir.spelling import layouts_of

EXTREMES = (ReduceOp.MAX, ReduceOp.MIN)


@dataclass(frozen=True, slots=True)
class Written:
    """A reshard as written: its name and axes, and what it reads."""

    name: Token
    axes: Axes
    args: tuple[Argument | Route | Reads, ...]


def resharded(written: Written, types: Sequence[Type], said: Said) -> Made:
    """The call of a reshard, or of several that are sent as one.

    Raises:
        GraphTextError: no reshard of that name leads from what is read to what the types say.
    """
    kind, _, last = written.name.rpartition("_")
    reduce = ReduceOp(last) if last in EXTREMES else ReduceOp.SUM
    value, *rest = written.args
    along = [arg for arg in rest if isinstance(arg, Route | Reads)]
    groups = [arg for arg in rest if not isinstance(arg, Route | Reads)]
    routed = any(isinstance(arg, Route) for arg in along)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    sources = [_one_tensor(source, written) for source in (*values, *groups)][: len(values)]
    if len(values) != len(types) or len(along) > 1 or bool(groups) != routed:
        remedy = "it has a type for each value that it reads, and groups with a route alone"
        raise GraphTextError(f"`{written.name}` is not called so", remedy, written.name)
    reshards = [
        _reshard(written, said.between or (layouts_of(source)[0], one.layout), reduce, along)
        for source, one in zip(sources, types, strict=True)
    ]
    if any(one.kind != (kind if reduce in EXTREMES else written.name) for one in reshards):
        wrong = f"`{written.name}` is a change by {reshards[0].kind}: {reshards[0]}"
        raise GraphTextError(wrong, f"call it `{reshards[0].kind}`", written.name)
    if isinstance(value, (list, tuple)):
        return Made(apply_reshards, (tuple(sources), tuple(reshards)), Place.of(written.name))
    return Made(apply_reshard, (value, reshards[0], *groups), Place.of(written.name))


def _one_tensor(value: object, written: Written) -> fx.Node:
    if isinstance(value, fx.Node) and isinstance(info(value).value, Tensor):
        return value
    remedy = "name a node above that is one tensor, or a list of them"
    raise GraphTextError(f"`{written.name}` changes the layout of a tensor", remedy, written.name)


def _reshard(
    written: Written, ends: Pair, reduce: ReduceOp, along: Sequence[Route | Reads]
) -> Reshard:
    route = next((one for one in along if isinstance(one, Route)), None)
    reads = next((one for one in along if isinstance(one, Reads)), None)
    if reads is None and ends[0].shape != ends[1].shape:
        remedy = "give the result the shape of what is read"
        raise GraphTextError(f"`{written.name}` changes no shapes", remedy, written.name)
    try:
        return Reshard(written.axes, *ends, reduce, route, reads)
    except NoChange as fault:
        remedy = "write the layout that the reshard leads to, or another reshard"
        raise GraphTextError(str(fault), remedy, written.name) from None
