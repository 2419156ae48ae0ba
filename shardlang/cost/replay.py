"""One step on one device, statement by statement: which storages it makes, and when each is freed.

The rules are those of the eager executor. A variable is freed behind the last statement that reads
it; what the backward reads of the forward lies in a list until then; leaves, results and
cotangents are the caller's, and stay. A gradient that becomes the `grad` of its parameter is copied
where it lies otherwise; on a mesh of several devices also where no collective has brought it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from torch import fx

from shardlang.cost.effects import Held, TensorType, Value, held_by
from shardlang.cost.half import Half, half_of
from shardlang.cost.half_effect import one, tensor_type
from shardlang.cost.heap import Heap
from shardlang.cost.step_calls import StepCalls
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info, layout_of, tensor_of
from shardlang.ir.step import StepProgram, arrives


class Replay(Heap):
    """What a step does to the memory of one device.

    Attributes:
        middle: the number of the statement between forward and backward.
        returned: the storages of the results.
        gradients: the storages in which the gradients lie in the end.
        saved: the storages of what the forward hands to the backward, without leaves.
        made: what every node gives.
    """

    def __init__(self, program: StepProgram, coord: Coord, backend: str) -> None:
        super().__init__()
        self.program, self.coord = program, coord
        self.calls = StepCalls(program.mesh, coord, backend)
        self.returned, self.gradients, self.saved = set[int](), set[int](), set[int]()
        self.middle = 0
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
                self._values[node] = self.made[node] = Held(made, (self.new(size, node, born),))
                self.hold(self._values[node])

    def _forward(self, results: Sequence[fx.Node], saved: Sequence[fx.Node]) -> None:
        half = half_of(self.program, self.calls, backward=False)
        kept = {half.variable(node) for node in (*results, *saved)}
        self._run(half, kept)
        values = {node: self._values[half.variable(node)] for node in (*results, *saved)}
        for node in saved:
            self.hold(values[node])
            self.saved.update(n for n in held_by(values[node]) if self.storages[n].born >= 0)
        for node, result in zip(results, self.program.results, strict=True):
            if result.kind is ResultKind.OUTPUT:
                self.hold(values[node])
                self.returned.update(held_by(values[node]))
        self.middle = len(self.statements)
        self.did(None)
        for variable in kept:
            if variable.op == "call_function":
                self.release(self._values[variable])
        leaves = {n: v for n, v in self._values.items() if n.op == "placeholder"}
        self._values = leaves | values

    def _backward(self, saved: Sequence[fx.Node], gradients: Sequence[fx.Node]) -> None:
        half = half_of(self.program, self.calls, backward=True)
        self._run(half, {half.variable(node) for node in gradients})
        read = {variable for freed in half.freed.values() for variable in freed}
        for node in saved:
            if node not in read:
                self.release(self._values[node])
        given = [half.variable(node) for node in gradients]
        for place, (name, variable) in enumerate(zip(self.program.gradients, given, strict=True)):
            value, last = self._values[variable], variable not in given[place + 1 :]
            owned = variable.op == "call_function"
            self._note_gradient(name, value)
            alone = arrives(variable) or self.program.mesh.devices == 1
            if not self._becomes_gradient(value, alone and owned and given.count(variable) == 1):
                self._copy_gradient(value)
                if owned and last:
                    self.release(value)

    def _run(self, half: Half, kept: Collection[fx.Node]) -> None:
        self.run_half(self.calls, half, self._values, kept)
        self.made.update({node: self._values[node] for node in half.statements})
        self.made.update({node: self.made[variable] for node, variable in half.same.items()})

    def _note_gradient(self, name: str, value: Value) -> None:
        """How a gradient lies in the end: in order, whether it is copied or not."""
        of = tensor_type(value)
        self.gradient_types[name] = TensorType.dense(of.shape, of.dtype)

    def _becomes_gradient(self, value: Value, owned: bool) -> bool:
        """Whether a gradient becomes its parameter's `grad` as it is."""
        of = one(value).type
        if not owned or not isinstance(of, TensorType) or not of.is_dense:
            return False
        self.gradients.update(held_by(value))
        return True

    def _copy_gradient(self, value: Value) -> None:
        """A gradient is copied to memory of its own."""
        of = tensor_type(value)
        number = self.new(of.bytes, None, len(self.statements))
        self.did(None, of.bytes)
        self.hold(Held(of, (number,)))
        self.gradients.add(number)


def _saved(program: StepProgram, also: Collection[str]) -> list[fx.Node]:
    """What the forward hands to the backward, beside leaves."""
    return [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and not info(node).backward
        if node.name in also or any(info(user).backward for user in node.users)
    ]
