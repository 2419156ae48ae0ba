"""The memory of one device while statements run: what they make, and when it is freed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, effect_of, held_by, renumbered
from shardlang.cost.half import Half
from shardlang.cost.step_calls import StepCalls


@dataclass(slots=True)
class Storage:
    """The memory of one tensor and its views.

    Attributes:
        maker: the node that made it; None for a copy of a gradient.
        born: the number of the statement that made it; -1 for what is there before.
        died: the number of the last statement at which it is there; None if it stays.
        holders: how many values hold it at this time.
    """

    bytes: int
    maker: fx.Node | None
    born: int
    died: int | None = None
    holders: int = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its node, and the most bytes that it holds at once beside its operands.

    One without a node stands for what happens between the halves, and behind the second.
    """

    node: fx.Node | None
    inside: int


def is_computed(variable: fx.Node) -> bool:
    """Whether a variable is no placeholder, which the caller holds."""
    return variable.op == "call_function"


class Heap:
    """All storages of one device, in the order in which they are made.

    Attributes:
        storages: all that there are at some time.
        statements: all that is run, in order.
        peak: the most bytes that are alive at once.
        peak_at: the number of the statement at which they are.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.statements: list[Statement] = []
        self.live = self.peak = 0
        self.peak_at = -1

    def new(self, size: int, maker: fx.Node | None, born: int) -> int:
        """A storage that nothing holds yet, by its number."""
        self.storages.append(Storage(size, maker, born))
        return len(self.storages) - 1

    def did(self, node: fx.Node | None, inside: int = 0) -> None:
        """A statement has run that held so many bytes beside what is alive."""
        if self.live + inside > self.peak:
            self.peak, self.peak_at = self.live + inside, len(self.statements)
        self.statements.append(Statement(node, inside))

    def hold(self, value: Value) -> None:
        """One more holds a value."""
        for number in {*held_by(value)}:
            storage = self.storages[number]
            self.live += 0 if storage.holders else storage.bytes
            storage.holders += 1

    def release(self, value: Value) -> None:
        """One less does."""
        for number in {*held_by(value)}:
            storage = self.storages[number]
            storage.holders -= 1
            if not storage.holders:
                self.live -= storage.bytes
                storage.died = len(self.statements) - 1

    def copied(self, of: TensorType, dtype: torch.dtype | None = None) -> Held:
        """New memory for a tensor, which nothing holds yet."""
        made = TensorType.dense(of.shape, dtype or of.dtype)
        number = self.new(made.bytes, None, len(self.statements))
        self.did(None, made.bytes)
        return Held(made, (number,))

    def run_half(
        self,
        calls: StepCalls,
        half: Half,
        values: dict[fx.Node, Value],
        kept: Collection[fx.Node],
        frees: Callable[[fx.Node], bool] = is_computed,
    ) -> None:
        """Run some statements on the values of variables.

        Args:
            values: those that are given; those that are made come in.
            kept: the variables that stay when they are done.
            frees: which variables are freed behind their last use.
        """
        for node in half.statements:
            value, inside = self._made(calls, node, half, values)
            self.did(node, inside)
            values[node] = value
            self.hold(value)
            for variable in half.freed.get(node, ()):
                if variable not in kept and frees(variable):
                    self.release(values[variable])

    def _made(
        self, calls: StepCalls, node: fx.Node, half: Half, values: dict[fx.Node, Value]
    ) -> tuple[Value, int]:
        """What a statement gives, and the most bytes that it holds at once."""
        if node.target is operator.getitem:
            source, place = node.args
            assert isinstance(source, fx.Node) and isinstance(place, int)
            whole = values[half.variable(source)]
            assert isinstance(whole, tuple) and not isinstance(whole, Held), f"{source} is one"
            return whole[place], 0
        call, nodes = calls.of(node)
        operands = [one(values[half.variable(n)]) for n in nodes]
        effect = effect_of(call, tuple(x.type for x in operands))
        numbers = [n for x in operands for n in x.storages]
        numbers += [self.new(size, node, len(self.statements)) for size in effect.new_bytes]
        return renumbered(effect.result, numbers.__getitem__), effect.peak_bytes


def one(value: Value) -> Held:
    """A value that is one tensor, or one object."""
    assert isinstance(value, Held), f"{value} is no single value"
    return value
