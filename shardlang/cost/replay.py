"""One step on one device, statement by statement: which storages it makes, and when each is freed.

The rules are those of the eager executor. A variable is freed behind the last statement that reads
it; what the backward reads of the forward lies in a list until then; leaves, results and
cotangents are the caller's, and stay. A gradient that becomes the `grad` of its parameter is copied
where it lies otherwise; on a mesh of several devices also where no collective has brought it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.cost.effects import (
    Held,
    TensorType,
    Value,
    effect_of,
    held_by,
    renumbered,
)
from shardlang.cost.half import Half, half_of
from shardlang.cost.step_calls import StepCalls
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info, layout_of, tensor_of
from shardlang.ir.step import StepProgram, arrives


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


class Replay:
    """What a step does to the memory of one device.

    Attributes:
        storages: all that there are at some time.
        statements: all that is run, in order.
        middle: the number of the statement between forward and backward.
        returned: the storages of the results.
        gradients: the storages in which the gradients lie in the end.
        saved: the storages of what the forward hands to the backward, without leaves.
        made: what every node gives.
        peak: the most bytes that are alive at once.
        peak_at: the number of the statement at which they are.
    """

    def __init__(self, program: StepProgram, coord: Coord, backend: str) -> None:
        self.program, self.coord = program, coord
        self.calls = StepCalls(program.mesh, coord, backend)
        self.storages: list[Storage] = []
        self.statements: list[Statement] = []
        self.returned, self.gradients, self.saved = set[int](), set[int](), set[int]()
        self.live = self.peak = self.middle = 0
        self.peak_at = -1
        self.made: dict[fx.Node, Value] = {}
        self._values: dict[fx.Node, Value] = {}

    def run(self, also_saved: Collection[str] = ()) -> None:
        """Go through the step.

        Args:
            also_saved: what the forward hands over beside what the backward reads, by name.
        """
        self._given(backward=False)
        results, gradients = self.program.returned
        saved = _saved(self.program, also_saved)
        self._forward(results, saved)
        self._given(backward=True)
        self._backward(saved, gradients)

    def _given(self, *, backward: bool) -> None:
        """The leaves, or the cotangents, which the caller of the step holds."""
        trained = {leaf.node for leaf in self.program.leaves if leaf.name in self.program.gradients}
        for node in self.program.graph.find_nodes(op="placeholder"):
            if info(node).backward is backward:
                shape, dtype = layout_of(node).local_shape(self.coord), tensor_of(node).dtype
                size, born = math.prod(shape) * dtype.itemsize, len(self.statements) - 1
                made = TensorType.dense(shape, dtype, node.name in trained)
                self._values[node] = self.made[node] = Held(made, (self._new(size, node, born),))
                self._hold(self._values[node])

    def _forward(self, results: Sequence[fx.Node], saved: Sequence[fx.Node]) -> None:
        half = half_of(self.program, self.calls, backward=False)
        kept = {half.variable(node) for node in (*results, *saved)}
        self._run(half, kept)
        values = {node: self._values[half.variable(node)] for node in (*results, *saved)}
        for node in saved:
            self._hold(values[node])
            self.saved.update(n for n in held_by(values[node]) if self.storages[n].born >= 0)
        for node, result in zip(results, self.program.results, strict=True):
            if result.kind is ResultKind.OUTPUT:
                self._hold(values[node])
                self.returned.update(held_by(values[node]))
        self.middle = len(self.statements)
        self._did(None, 0)
        for variable in kept:
            if variable.op == "call_function":
                self._release(self._values[variable])
        leaves = {n: v for n, v in self._values.items() if n.op == "placeholder"}
        self._values = leaves | values

    def _backward(self, saved: Sequence[fx.Node], gradients: Sequence[fx.Node]) -> None:
        half = half_of(self.program, self.calls, backward=True)
        self._run(half, {half.variable(node) for node in gradients})
        read = {variable for freed in half.freed.values() for variable in freed}
        for node in saved:
            if node not in read:
                self._release(self._values[node])
        given = [half.variable(node) for node in gradients]
        for place, variable in enumerate(given):
            value, last = self._values[variable], variable not in given[place + 1 :]
            owned = variable.op == "call_function"
            alone = arrives(variable) or self.program.mesh.devices == 1
            if not self._becomes_gradient(value, alone and owned and given.count(variable) == 1):
                self._copy_gradient(value)
                if owned and last:
                    self._release(value)

    def _run(self, half: Half, kept: Collection[fx.Node]) -> None:
        for node in half.statements:
            value, inside = self._made(node, half)
            self._did(node, inside)
            self._values[node] = self.made[node] = value
            self._hold(value)
            for variable in half.freed.get(node, ()):
                if variable not in kept and variable.op == "call_function":
                    self._release(self._values[variable])
        self.made.update({node: self.made[variable] for node, variable in half.same.items()})

    def _made(self, node: fx.Node, half: Half) -> tuple[Value, int]:
        """What a statement gives, and the most bytes that it holds at once."""
        if node.target is operator.getitem:
            source, place = node.args
            assert isinstance(source, fx.Node) and isinstance(place, int)
            whole = self._values[half.variable(source)]
            assert isinstance(whole, tuple) and not isinstance(whole, Held), f"{source} is one"
            return whole[place], 0
        call, nodes = self.calls.of(node)
        operands = [_one(self._values[half.variable(n)]) for n in nodes]
        effect = effect_of(call, tuple(one.type for one in operands))
        numbers = [n for one in operands for n in one.storages]
        numbers += [self._new(size, node, len(self.statements)) for size in effect.new_bytes]
        return renumbered(effect.result, numbers.__getitem__), effect.peak_bytes

    def _becomes_gradient(self, value: Value, owned: bool) -> bool:
        """Whether a gradient becomes its parameter's `grad` as it is."""
        of = _one(value).type
        if not owned or not isinstance(of, TensorType) or not of.is_dense:
            return False
        self.gradients.update(held_by(value))
        return True

    def _copy_gradient(self, value: Value) -> None:
        """A gradient is copied to memory of its own."""
        of = _one(value).type
        assert isinstance(of, TensorType)
        number = self._new(of.bytes, None, len(self.statements))
        self._did(None, of.bytes)
        self._hold(Held(of, (number,)))
        self.gradients.add(number)

    # storages

    def _new(self, size: int, maker: fx.Node | None, born: int) -> int:
        self.storages.append(Storage(size, maker, born))
        return len(self.storages) - 1

    def _did(self, node: fx.Node | None, inside: int) -> None:
        if self.live + inside > self.peak:
            self.peak, self.peak_at = self.live + inside, len(self.statements)
        self.statements.append(Statement(node, inside))

    def _hold(self, value: Value) -> None:
        for number in {*held_by(value)}:
            storage = self.storages[number]
            self.live += 0 if storage.holders else storage.bytes
            storage.holders += 1

    def _release(self, value: Value) -> None:
        for number in {*held_by(value)}:
            storage = self.storages[number]
            storage.holders -= 1
            if not storage.holders:
                self.live -= storage.bytes
                storage.died = len(self.statements) - 1


def _one(value: Value) -> Held:
    """A value that is one tensor, or one object."""
    assert isinstance(value, Held), f"{value} is no single value"
    return value


def _saved(program: StepProgram, also: Collection[str]) -> list[fx.Node]:
    """What the forward hands to the backward, beside leaves."""
    return [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and not info(node).backward
        if node.name in also or any(info(user).backward for user in node.users)
    ]
