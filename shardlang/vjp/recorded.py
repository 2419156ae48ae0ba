"""The ops of an op that is recorded, on one device; and such an op made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import AttentionKernels, attention_kernels, map_leaves, tree_map_only
from shardlang.ir.device_values import specialise
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info, is_ordered
from shardlang.ir.step import Operand, Record, pull, record
from shardlang.vjp.by_itself import by_itself
from shardlang.vjp.op_call import OpCall, Shard
from shardlang.vjp.trace import ops_of
from shardlang.vjp.traced import Traced


@dataclass(frozen=True, slots=True)
class Recorded:
    """A `record` node, with what it says of the op.

    Attributes:
        args: with an `Operand` in the place of every tensor, as are `kwargs`.
        wanted: the operands whose gradients are asked for.
        given: the results, among the tensors, whose cotangents are given.
    """

    node: fx.Node
    target: Callable[..., object]
    args: Args
    kwargs: Kwargs
    operands: tuple[fx.Node, ...]
    wanted: tuple[int, ...]
    given: tuple[int, ...]

    @staticmethod
    def of(node: fx.Node) -> Recorded:
        """That of a node."""
        target, args, kwargs, operands, wanted, given = node.args
        assert callable(target) and isinstance(args, tuple) and isinstance(kwargs, dict)
        xs = tuple(x for x in _sequence(operands) if isinstance(x, fx.Node))
        return Recorded(node, target, args, kwargs, xs, _numbers(wanted), _numbers(given))

    def at(self, coord: Coord) -> tuple[Args, Kwargs]:
        """The arguments on one device."""
        return specialise((self.args, self.kwargs), coord)

    def shards(self, coord: Coord) -> list[Shard | None]:
        """Its operands on one device; None for one of which nothing is known."""
        return [shard_at(x, coord) for x in self.operands]

    def ops(
        self, coord: Coord, device: torch.device, kernels: AttentionKernels | None = None
    ) -> Traced | None:
        """Its ops on one device; None where it draws, or data decides a size."""
        values = (*self.operands, *self.node.users)
        if info(self.node).random or any(map(is_ordered, values)):
            return None
        shards = self.shards(coord)
        known = tuple(one for one in shards if one is not None)
        if len(known) < len(shards):
            return None
        args, kwargs = self.at(coord)
        ends = self.wanted, self.given
        allowed = kernels or attention_kernels()
        return ops_of(OpCall(self.target, args, kwargs, known, *ends, device, allowed))


def recorded_by(node: fx.Node) -> fx.Node:
    """The recorded op of which a `pull` gives the gradients."""
    (kept,) = node.args[:1]
    assert isinstance(kept, fx.Node)
    return kept.all_input_nodes[0]


def cotangents_of(node: fx.Node) -> list[fx.Node | None]:
    """The cotangents that a `pull` is given; None for a result that no gradient reaches."""
    return [one if isinstance(one, fx.Node) else None for one in _sequence(node.args[1])]


def as_run(node: fx.Node, coord: Coord) -> Callable[..., object]:
    """What a CPU calls for a node: a recorded op is made of its ops, where these are known."""
    if node.target is pull:
        return _pulled
    assert callable(node.target)
    if node.target is not record:
        return node.target
    recorded = Recorded.of(node)
    traced = by_itself(lambda: recorded.ops(coord, torch.device("cpu")))
    return record if traced is None else _Run(recorded, traced, coord)


@dataclass(frozen=True, slots=True)
class _Run:
    """A recorded op, made of its ops."""

    recorded: Recorded
    traced: Traced
    coord: Coord

    def __call__(self, *given: object) -> tuple[object, ...]:
        """Its results, and last what it holds, of what `record` is given."""
        traced, xs = self.traced, _sequence(given[3])
        values: dict[fx.Node, object] = dict(zip(traced.operands, xs, strict=True))
        if traced.whole:
            args, kwargs = tree_map_only(
                Operand, lambda one: xs[one.index], self.recorded.at(self.coord)
            )
            made = self.recorded.target(*args, **kwargs)
            results = _sequence(made) if traced.several else (made,)
            pairs = zip(traced.results, results, strict=True)
            values.update((node, one) for node, one in pairs if node is not None)
        _run(traced.forward, values)
        gives = [None if one is None else values[one] for one in traced.results]
        return (*gives, Held(self.recorded, traced, values))


def _pulled(held: object, cotangents: Sequence[Tensor | None]) -> tuple[object, ...]:
    if isinstance(held, Held):
        return held.pull(cotangents)
    assert isinstance(held, Record)
    return pull(held, cotangents)


@dataclass(slots=True)
class Held:
    """What an op that is made of its ops holds between its forward and its backward."""

    recorded: Recorded
    traced: Traced
    values: dict[fx.Node, object]

    def pull(self, cotangents: Sequence[Tensor | None]) -> tuple[object, ...]:
        """The gradients of its operands; zeros for one that no gradient reaches."""
        traced, values = self.traced, dict(self.values)
        results = [one for one in traced.results if one is not None]
        for i, node, given in zip(self.recorded.given, traced.cotangents, cotangents, strict=True):
            values[node] = _zeros(values[results[i]]) if given is None else given
        _run(traced.backward, values)
        pairs = ((traced.gradients[i], traced.operands[i]) for i in self.recorded.wanted)
        return tuple(_zeros(values[x]) if g is None else values[g] for g, x in pairs)


def _run(nodes: Sequence[fx.Node], values: dict[fx.Node, object]) -> None:
    for node in nodes:
        args, kwargs = map_leaves(
            (node.args, node.kwargs), lambda one: values[one] if isinstance(one, fx.Node) else one
        )
        assert callable(node.target)
        values[node] = node.target(*args, **kwargs)


def _zeros(like: object) -> Tensor:
    assert isinstance(like, Tensor)
    return torch.zeros_like(like)


def shard_at(node: fx.Node, coord: Coord) -> Shard | None:
    """The shape and dtype of a value on a device, where they are known."""
    layout, value = info(node).layout, info(node).value
    if not isinstance(layout, Layout) or not isinstance(value, Tensor):
        return None
    return Shard(layout.local_shape(coord), value.dtype)


def _sequence(value: object) -> Sequence[object]:
    assert isinstance(value, (list, tuple)), f"{value} are not several"
    return value


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(one for one in _sequence(value) if isinstance(one, int))
