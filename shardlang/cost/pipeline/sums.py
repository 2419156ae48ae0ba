"""Sums over microbatches in memory: the first summand, then a new sum, then in place."""

from __future__ import annotations

import torch

from shardlang.cost.effects import Call, Held, TensorType, held_by
from shardlang.cost.heap import Heap
from shardlang.ir.precision import wider

_ADD = Call(lambda x, y: (x + y,), "add")


class Sums:
    """Named sums on a heap.

    Attributes:
        storages: those in which a sum lies at some time.
    """

    def __init__(self, heap: Heap, wide: torch.dtype | None = None) -> None:
        """`wide`: the type of the sums of narrower values."""
        self.heap, self.wide = heap, wide
        self.storages = set[int]()
        self._sums: dict[str, tuple[Held, int]] = {}

    def value(self, name: str) -> Held:
        """A sum. Raises KeyError."""
        return self._sums[name][0]

    def get(self, name: str) -> Held | None:
        """A sum; None if nothing was added."""
        return self._sums[name][0] if name in self._sums else None

    def add(self, name: str, value: Held) -> None:
        """Add a value; the first one is not copied, and so not changed by the second."""
        of = value.type
        assert isinstance(of, TensorType)
        known, count = self._sums.get(name, (None, 0))
        dtype = wider(of.dtype, self.wide)
        if known is None:
            cast = Call(lambda x: (x.to(dtype),), ("to", dtype))
            self._new(name, value if dtype == of.dtype else cast, [value], 1)
        elif count == 1 and dtype == of.dtype:
            self._new(name, _ADD, [known, value], 2)
            self.heap.release(known)

    def clear(self) -> None:
        """Let go of all sums: what became a gradient is held as one."""
        for value, _ in self._sums.values():
            self.heap.release(value)
        self._sums = {}

    def _new(self, name: str, made: Held | Call, operands: list[Held], count: int) -> None:
        """Hold a value, or what a call gives: it lies in memory as its operands do."""
        if not isinstance(made, Call):
            self._put(name, made, count)
            return
        (value,) = self.heap.call(made, operands)
        self._put(name, value, count)
        self.heap.release(value)

    def replace(self, name: str, value: Held) -> None:
        """Hold a value in the place of the one of that name."""
        known = self.get(name)
        self._put(name, value, 1)
        if known is not None:
            self.heap.release(known)

    def _put(self, name: str, value: Held, count: int) -> None:
        self.heap.hold(value)
        self.storages.update(held_by(value))
        self._sums[name] = value, count
