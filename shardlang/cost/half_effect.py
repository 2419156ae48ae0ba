"""What a half of a step does to memory, learned once for values of the same types.

A pipeline runs the same half for every microbatch. What each statement calls, how much it holds and
what it frees follows from how the values lie that the half is given, and which of them share
memory, so it need be found out once.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, effect_of, held_by, renumbered
from shardlang.cost.half import Half, HalfEffect, Line, Statement
from shardlang.cost.step_calls import StepCalls


def half_effect(
    half: Half, calls: StepCalls, given: Mapping[fx.Node, Value], gone: Collection[fx.Node]
) -> HalfEffect:
    """The effect of a half on the device of its calls, learned when it is first asked for.

    Args:
        given: the values of the variables that it reads, in their order, storages numbered.
        gone: the variables that are freed behind their last use.
    """
    key = tuple(given.values()), frozenset(gone)
    if key not in half.effects:
        half.effects[key] = _learned(half, calls, given, key[1])
    return half.effects[key]


def _learned(
    half: Half, calls: StepCalls, given: Mapping[fx.Node, Value], gone: Collection[fx.Node]
) -> HalfEffect:
    effect, values = HalfEffect(), dict(given)
    count = len(set(_storages(given.values())))
    for node in half.statements:
        value, sizes, inside = _made(half, calls, node, values, count)
        count += len(sizes)
        values[node] = effect.made[node] = value
        freed = (_unique(values[x]) for x in half.freed.get(node, ()) if x in gone)
        releases = tuple(number for numbers in freed for number in numbers)
        effect.lines.append(Line(Statement(node, inside), sizes, _unique(value), releases))
    return effect


def _made(
    half: Half, calls: StepCalls, node: fx.Node, values: Mapping[fx.Node, Value], count: int
) -> tuple[Value, tuple[int, ...], int]:
    """What a statement gives, the bytes of its new storages, and the most that it holds at once."""
    if node.target is operator.getitem:
        source, place = node.args
        assert isinstance(source, fx.Node) and isinstance(place, int)
        whole = values[half.variable(source)]
        assert isinstance(whole, tuple) and not isinstance(whole, Held), f"{source} is one"
        return whole[place], (), 0
    call, nodes = calls.of(node)
    operands = [one(values[half.variable(n)]) for n in nodes]
    effect = effect_of(call, tuple(x.type for x in operands))
    numbers = [n for x in operands for n in x.storages]
    numbers += range(count, count + len(effect.new_bytes))
    return renumbered(effect.result, numbers.__getitem__), effect.new_bytes, effect.peak_bytes


def one(value: Value) -> Held:
    """A value that is one tensor, or one object."""
    assert isinstance(value, Held), f"{value} is no single value"
    return value


def tensor_type(value: Value) -> TensorType:
    """How a value lies that is one tensor."""
    of = one(value).type
    assert isinstance(of, TensorType), f"{value} is an object"
    return of


def _unique(value: Value) -> tuple[int, ...]:
    return tuple({*held_by(value)})


def _storages(values: Iterable[Value]) -> Iterator[int]:
    for value in values:
        yield from held_by(value)
