"""Inputs that may hold a larger number than an op of the model takes: tokens, classes, positions.

Tracing knows shapes alone, so a look-up of number 11 in a table of 10 rows would fail only when it
runs, inside an op and without the input's name; in a table that is split, it would not fail at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx

from shardlang.capture.errors import CaptureError
from shardlang.capture.source import InputSpec
from shardlang.capture.types import Captured
from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call
from shardlang.rules.indexed import Indexed
from shardlang.rules.registry import find, traits_of

Step: TypeAlias = "tuple[Callable[..., Tensor], Args, Kwargs]"
"""An op with its arguments after the first."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Which numbers an op takes from an input: `low` up to `high`, without `high`, and `ignored`.

    Attributes:
        steps: the ops between the input and the op.
        op: the op's name, and its line in the model's code.
    """

    input: str
    low: int
    high: int
    ignored: int | None
    steps: tuple[Step, ...]
    op: str

    @property
    def numbers(self) -> tuple[int, int, int | None]:
        """The numbers that the op takes."""
        return self.low, self.high, self.ignored

    def fault(self, whole: Tensor) -> str:
        """What is wrong with a whole input, in words; empty where nothing is."""
        read = whole
        for target, rest, named in self.steps:
            read = target(read, *rest, **named)
        if not read.numel() or (self.low <= int(read.min()) and int(read.max()) < self.high):
            return ""
        outside = (read < self.low) | (read >= self.high)
        if self.ignored is not None:
            outside &= read != self.ignored
        if not outside.any():
            return ""
        number = int(read[outside][0])
        place = (whole == number).nonzero()[:1].flatten().tolist()
        at = f" at {place}" if place else ""
        taken = f"numbers from {self.low} to {self.high - 1}"
        return f"`{self.input}` holds {number}{at}, and {self.op} takes {taken}"


def limits(captured: Captured) -> tuple[Limit, ...]:
    """What the model's ops take from its integer inputs, without repetitions."""
    inputs = {leaf.node: leaf.name for leaf in captured.leaves if _counts(leaf)}
    found: dict[object, Limit] = {}
    for node in captured.graph.nodes:
        for taken in _indexed(node):
            source, way = _way(taken.operand)
            if source.name in inputs and source.op == "placeholder":
                made = _limit(node, inputs[source.name], way, taken)
                found.setdefault((made.input, tuple(way), *made.numbers), made)
    return tuple(found.values())


def _limit(node: fx.Node, name: str, way: list[fx.Node], taken: Indexed) -> Limit:
    place = f" at {info(node).source}" if info(node).source else ""
    steps = tuple(map(_step, way))
    op = f"`{traits_of(node).name}`{place}"
    return Limit(name, taken.low, taken.high, taken.ignored, steps, op)


def _step(node: fx.Node) -> Step:
    assert callable(node.target)
    return node.target, node.args[1:], node.kwargs


def _counts(leaf: Leaf) -> bool:
    kind = leaf.dtype
    return (
        leaf.kind is LeafKind.INPUT
        and not (kind.is_floating_point or kind.is_complex)
        and (kind is not torch.bool)
    )


def check_bounds(captured: Captured, specs: Iterable[InputSpec]) -> None:
    """Compare what inputs are declared to hold with what the ops that they index take.

    Raises:
        CaptureError: SH0312, an input may hold a number that is too large.
    """
    declared = {spec.name: spec.below for spec in specs if spec.below is not None}
    for limit in limits(captured):
        below = declared.get(limit.input)
        ignores = limit.ignored is not None and limit.ignored >= 0
        if below is not None and below > limit.high and not ignores:
            raise _too_large(limit, below)


def check_values(captured: Captured, inputs: Mapping[str, Tensor]) -> None:
    """Compare the numbers that whole inputs hold with what the ops that they index take.

    Raises:
        CaptureError: SH0312, an input holds a number that an op does not take.
    """
    for limit in limits(captured):
        fault = limit.fault(inputs[limit.input])
        if fault:
            raise CaptureError("SH0312", fault, help=REMEDY, input=limit.input)


REMEDY = "fix the data, or give the model as many rows or classes as the data has"


def _too_large(limit: Limit, below: int) -> CaptureError:
    return CaptureError(
        "SH0312",
        f"`{limit.input}` may hold numbers up to {below - 1}, and {limit.op} takes numbers up"
        f" to {limit.high - 1}",
        help=f"declare it `below {limit.high}`, or give the model {below} rows or classes",
        input=limit.input,
    )


def _way(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The value that another is taken from as it is, and the ops in between, in order."""
    way: list[fx.Node] = []
    while node.op == "call_function" and _keeps_numbers(node):
        way.insert(0, node)
        node = node.all_input_nodes[0]
    return node, way


def _keeps_numbers(node: fx.Node) -> bool:
    """Whether a result holds no number that its one operand does not hold (a pad is small)."""
    traits = traits_of(node)
    return len(node.all_input_nodes) == 1 and (traits.moves or traits.kind is OpKind.PAD)


def _indexed(node: fx.Node) -> Iterable[Indexed]:
    """The operands of an op that count something."""
    declared = find(node.target) if node.op == "call_function" else None
    if declared is None or declared.indexes is None:
        return ()
    return declared.indexes(Call(node))
