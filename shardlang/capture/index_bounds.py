"""Inputs that may hold a larger number than an op of the model takes: tokens, classes, positions.

Tracing knows shapes alone, so a look-up of number 11 in a table of 10 rows would fail only when it
runs, inside an op and without the input's name; in a table that is split, it would not fail at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from shardlang.capture.errors import CaptureError
from shardlang.capture.source import InputSpec
from shardlang.capture.types import Captured
from shardlang.ir.graph import op_name
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info, tensor_of

_KEEPS = frozenset({
    "_to_copy", "_unsafe_view", "alias", "clone", "constant_pad_nd", "contiguous", "detach",
    "expand", "flatten", "permute", "reshape", "select", "slice", "squeeze", "t", "to",
    "transpose", "unflatten", "unsqueeze", "view",
})  # fmt: skip
"""Ops whose result holds no number that their first argument does not hold (a pad is small)."""

_LOSSES = ("cross_entropy_loss", "nll_loss", "nll_loss_nd")
_LOOKUPS = ("gather", "index_select", "scatter", "scatter_add")


@dataclass(frozen=True, slots=True)
class Limit:
    """Which numbers an op takes from an input: `low` up to `high`, without `high`, and `ignored`.

    Attributes:
        steps: the ops, with their arguments behind the first, between the input and the op.
        op: the op's name, and its line in the model's code.
    """

    input: str
    low: int
    high: int
    ignored: int | None
    steps: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...]
    op: str

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
        for index, low, high, ignored in _indexed(node):
            source, way = _way(index)
            if source.name in inputs and source.op == "placeholder":
                made = _limit(node, inputs[source.name], way, (low, high, ignored))
                found.setdefault((made.input, tuple(way), low, high, ignored), made)
    return tuple(found.values())


def _limit(
    node: fx.Node, name: str, way: list[fx.Node], taken: tuple[int, int, int | None]
) -> Limit:
    place = f" at {info(node).source}" if info(node).source else ""
    steps = tuple((step.target, step.args[1:], dict(step.kwargs)) for step in way)
    return Limit(name, *taken, steps, f"`{_name(node)}`{place}")


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


REMEDY = "mend the data, or give the model as many rows or classes as the data has"


def _too_large(limit: Limit, below: int) -> CaptureError:
    return CaptureError(
        "SH0312",
        f"`{limit.input}` may hold numbers up to {below - 1}, and {limit.op} takes numbers up"
        f" to {limit.high - 1}",
        help=f"declare it `below {limit.high}`, or give the model {below} rows or classes",
        input=limit.input,
    )


def _name(node: fx.Node) -> str:
    return op_name(node.target).split(".")[0]


def _way(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The value that another is taken from as it is, and the ops in between, in order."""
    way: list[fx.Node] = []
    while node.op == "call_function" and _name(node) in _KEEPS and len(node.all_input_nodes) == 1:
        way.insert(0, node)
        node = node.all_input_nodes[0]
    return node, way


_Taken = tuple[fx.Node, int, int, int | None]


def _indexed(node: fx.Node) -> Iterator[_Taken]:
    """The operands of an op that count something: from where, up to what, and what is ignored."""
    args = list(node.args)
    if node.op != "call_function" or len(args) < 2:
        return
    name, first, second, rest = _name(node), args[0], args[1], args[2:]
    if not isinstance(first, fx.Node):
        return
    shape: tuple[int, ...] = tuple(getattr(info(first).value, "shape", ()))
    if name == "embedding" and isinstance(second, fx.Node):
        yield second, 0, shape[0], None
    elif name in _LOSSES and isinstance(second, fx.Node):
        ignored = rest[2] if len(rest) > 2 and isinstance(rest[2], int) else -100
        yield second, 0, shape[1 if len(shape) > 1 else 0], ignored
    elif name in _LOOKUPS and isinstance(second, int) and shape:
        yield from ((x, 0, int(shape[second]), None) for x in rest[:1] if isinstance(x, fx.Node))
    elif name in ("index", "index_put") and isinstance(second, (list, tuple)):
        yield from _of_indices(second, shape)


def _of_indices(indices: Sequence[Any], shape: Sequence[int]) -> Iterator[_Taken]:
    """What `x[i, j]` takes; masks, which stand for several dims, end it."""
    for index, size in zip(indices, shape, strict=False):
        if isinstance(index, fx.Node):
            if tensor_of(index).dtype in (torch.bool, torch.uint8):
                return
            yield index, -size, size, None
