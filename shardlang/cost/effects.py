"""What a call does to memory, learned once per distinct call from a run on fake tensors.

The run tells which results lie in the memory of operands and how every result lies, the bytes of
those with memory of their own, what an object that is no tensor keeps alive, and the most bytes
that the call holds at once. Storages are numbered: those of the operands first, then new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from shardlang.cost.meter import Meter
from shardlang.ir.compat import NO_FAKE_RESULT
from shardlang.ir.fakes import fake, fake_mode


class TensorType(NamedTuple):
    """All that a call may ask of a tensor but its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    conj: bool = False
    neg: bool = False
    trained: bool = False

    @classmethod
    def dense(cls, shape: tuple[int, ...], dtype: torch.dtype, trained: bool = False) -> TensorType:
        """That of a tensor that lies in order."""
        strides, step = [0] * len(shape), 1
        for i in reversed(range(len(shape))):
            strides[i], step = step, step * max(shape[i], 1)
        return cls(shape, tuple(strides), dtype, trained=trained)

    @classmethod
    def of(cls, x: Tensor) -> TensorType:
        """That of a tensor."""
        lazy = x.is_conj(), x.is_neg()
        return cls(tuple(x.shape), x.stride(), x.dtype, *lazy, x.requires_grad)

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether it lies in order; how a dim of one index lies does not matter."""
        dense = TensorType.dense(self.shape, self.dtype).strides
        each = zip(self.shape, self.strides, dense, strict=True)
        return all(size == 1 or step == wanted for size, step, wanted in each)

    def made(self) -> Tensor:
        """A fake tensor of this type."""
        x = fake(self.shape, self.dtype, self.strides)
        x = x.conj() if self.conj else x
        x = torch._neg_view(x) if self.neg else x
        return x.requires_grad_() if self.trained else x


class Opaque(NamedTuple):
    """An object that is no tensor: the call that gives it, and where in the call's results."""

    maker: Effect
    place: tuple[int, ...]


class Held(NamedTuple):
    """A value and the numbers of the storages that it keeps alive."""

    type: TensorType | Opaque
    storages: tuple[int, ...]


Value: TypeAlias = "Held | tuple[Value, ...] | None"
"""The results of a call; None for what holds no memory."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call without its operands.

    Attributes:
        run: takes the operands, in order.
        key: equal for calls that do the same.
        expected: the same, where `run` fails without values.
    """

    run: Callable[..., object]
    key: Hashable
    expected: Callable[..., object] | None = None

    def made(self, operands: Sequence[object]) -> object:
        """What it gives for fake operands."""
        if self.expected is None:
            return self.run(*operands)
        try:
            return self.run(*operands)
        except (*NO_FAKE_RESULT, RuntimeError, TypeError, ValueError, IndexError):
            return self.expected(*operands)


@dataclass(slots=True, eq=False)
class Effect:
    """What a call with operands of certain types does to memory.

    Attributes:
        result: with storages numbered as above.
        new_bytes: bytes of each new storage that the results keep alive.
        peak_bytes: the most bytes that the call holds at once, beside its operands.
    """

    call: Call
    types: tuple[TensorType | Opaque, ...]
    result: Value = None
    new_bytes: tuple[int, ...] = ()
    peak_bytes: int = 0


_LEARNED: dict[object, Effect] = {}
_MOST = 1 << 15


def effect_of(call: Call, types: tuple[TensorType | Opaque, ...]) -> Effect:
    """The effect of a call, learned when it is first asked for."""
    key = call.key, types
    found = _LEARNED.get(key)
    if found is None:
        if len(_LEARNED) == _MOST:
            _LEARNED.clear()
        found = _LEARNED[key] = _learned(call, types)
    return found


def held_by(value: Value) -> Iterator[int]:
    """The storages that a value keeps alive; one that several parts share comes several times."""
    if isinstance(value, Held):
        yield from value.storages
    elif value is not None:
        for one in value:
            yield from held_by(one)


def renumbered(value: Value, number: Callable[[int], int]) -> Value:
    """A value with other numbers for its storages."""
    if isinstance(value, Held):
        return Held(value.type, tuple(map(number, value.storages)))
    return value and tuple(renumbered(one, number) for one in value)


def _learned(call: Call, types: tuple[TensorType | Opaque, ...]) -> Effect:
    effect = Effect(call, types)
    with fake_mode(), torch.no_grad(), Meter() as meter:
        operands = [_operand(one, meter) for one in types]
        given = [number for number, _ in meter.alive()]
        start = meter.peak = meter.live
        result = call.made(operands)
        value, objects = _value(result, effect, meter), list(_objects(result))
        sizes = dict(meter.alive())
        del result, operands
        kept = tuple(number for number, _ in meter.alive()) if objects else ()
        del objects
    value = _keeping(value, kept)
    made = sorted({*held_by(value)} - {*given})
    order = {number: i for i, number in enumerate((*given, *made))}
    effect.result = renumbered(value, order.__getitem__)
    effect.new_bytes = tuple(sizes[number] for number in made)
    effect.peak_bytes = meter.peak - start
    return effect


def _operand(one: TensorType | Opaque, meter: Meter) -> object:
    """A fake operand, counted."""
    if isinstance(one, TensorType):
        made_for_it = one.made()
        meter.count([made_for_it])
        return made_for_it
    made = one.maker.call.made([_operand(of, meter) for of in one.maker.types])
    for index in one.place:
        assert isinstance(made, (tuple, list))
        made = made[index]
    return made


_NUMBERS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))
"""Results that hold no memory."""


def _objects(result: object) -> Iterator[object]:
    """The results that are neither tensors nor numbers."""
    if isinstance(result, (tuple, list)):
        for one in result:
            yield from _objects(one)
    elif not isinstance(result, (Tensor, *_NUMBERS)):
        yield result


def _value(result: object, effect: Effect, meter: Meter, place: tuple[int, ...] = ()) -> Value:
    """A result as a value, with the storages' numbers of the meter."""
    if isinstance(result, Tensor):
        meter.count([result])
        return Held(TensorType.of(result), (meter.number(result),))
    if isinstance(result, (tuple, list)):
        parts = enumerate(result)
        return tuple(_value(one, effect, meter, (*place, i)) for i, one in parts)
    return None if isinstance(result, _NUMBERS) else Held(Opaque(effect, place), ())


def _keeping(value: Value, kept: tuple[int, ...]) -> Value:
    """A value whose objects keep some storages alive."""
    if isinstance(value, Held):
        return value._replace(storages=kept) if isinstance(value.type, Opaque) else value
    return value and tuple(_keeping(one, kept) for one in value)
