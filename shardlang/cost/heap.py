"""The memory of one device while statements run: what they make, and when it is freed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from shardlang.cost.effects import Call, Held, TensorType, Value, effect_of, held_by, renumbered
from shardlang.cost.half import Half, HalfEffect, Statement
from shardlang.cost.half_effect import half_effect, one
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
        gradient_types: how the gradients lie in the end, by the names of their parameters.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.statements: list[Statement] = []
        self.live = self.peak = 0
        self.peak_at = -1
        self.gradient_types: dict[str, TensorType] = {}

    def new(self, size: int, maker: fx.Node | None, born: int) -> int:
        """A storage that nothing holds yet, by its number."""
        self.storages.append(Storage(size, maker, born))
        return len(self.storages) - 1

    def did(self, node: fx.Node | None, inside: int = 0) -> None:
        """A statement has run that held so many bytes beside what is alive."""
        self._did(Statement(node, inside))

    def _did(self, statement: Statement) -> None:
        if self.live + statement.inside > self.peak:
            self.peak, self.peak_at = self.live + statement.inside, len(self.statements)
        self.statements.append(statement)

    def hold(self, value: Value) -> None:
        """One more holds a value."""
        for number in {*held_by(value)}:
            self._hold(number)

    def _hold(self, number: int) -> None:
        storage = self.storages[number]
        self.live += 0 if storage.holders else storage.bytes
        storage.holders += 1

    def release(self, value: Value) -> None:
        """One less does."""
        for number in {*held_by(value)}:
            self._release(number)

    def _release(self, number: int) -> None:
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

    def call(self, call: Call, operands: Sequence[Held]) -> list[Held]:
        """Run a call beside the statements of a half; what it gives is held."""
        effect = effect_of(call, tuple(x.type for x in operands))
        numbers = [n for x in operands for n in x.storages]
        numbers += [self.new(size, None, len(self.statements)) for size in effect.new_bytes]
        self.did(None, effect.peak_bytes)
        made = renumbered(effect.result, numbers.__getitem__)
        self.hold(made)
        assert isinstance(made, tuple)
        return [one(x) for x in made]

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
        numbers = list(dict.fromkeys(n for x in half.read for n in held_by(values[x])))
        places = {number: place for place, number in enumerate(numbers)}
        given = {x: renumbered(values[x], places.__getitem__) for x in half.read}
        stay = set(kept)
        gone = [x for x in half.variables if x not in stay and frees(x)]
        values.update(self._run_lines(half_effect(half, calls, given, gone), numbers))

    def _run_lines(self, effect: HalfEffect, numbers: list[int]) -> dict[fx.Node, Value]:
        """Run the statements of a half on storages; gives what they make."""
        for line in effect.lines:
            for size in line.sizes:
                numbers.append(self.new(size, line.statement.node, len(self.statements)))
            self._did(line.statement)
            for place in line.holds:
                self._hold(numbers[place])
            for place in line.releases:
                self._release(numbers[place])
        return {node: renumbered(x, numbers.__getitem__) for node, x in effect.made.items()}
