"""Inputs that may hold a larger number than an op of the model takes: tokens, classes, positions.

Tracing knows shapes alone, so a look-up of number 11 in a table of 10 rows would fail only when it
runs, inside an op and without the input's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import fx

from shardlang.capture.errors import CaptureError
from shardlang.capture.source import InputSpec
from shardlang.capture.types import Captured
from shardlang.ir.graph import op_name

_KEEPS = frozenset({
    "_to_copy", "_unsafe_view", "alias", "clone", "constant_pad_nd", "contiguous", "detach",
    "expand", "flatten", "permute", "reshape", "select", "slice", "squeeze", "t", "to",
    "transpose", "unflatten", "unsqueeze", "view",
})  # fmt: skip
"""Ops whose result holds no number that their first argument does not hold (a pad is small)."""

_LOSSES = ("cross_entropy_loss", "nll_loss", "nll_loss_nd")


def check_bounds(captured: Captured, specs: Iterable[InputSpec]) -> None:
    """Compare what inputs are declared to hold with what the ops that they index take.

    Raises:
        CaptureError: SH0312, an input may hold a number that is too large.
    """
    declared = {spec.name: spec.below for spec in specs if spec.below is not None}
    inputs = {leaf.node: leaf.name for leaf in captured.leaves if leaf.name in declared}
    for node in captured.graph.nodes:
        for index, limit in _indexed(node):
            name = _input(index, inputs)
            if name is not None and declared[name] > limit:
                raise _too_large(name, declared[name], node, limit)


def _too_large(name: str, below: int, node: fx.Node, limit: int) -> CaptureError:
    place = f" at {node.meta['source']}" if node.meta.get("source") else ""
    return CaptureError(
        "SH0312",
        f"`{name}` may hold numbers up to {below - 1}, and `{_name(node)}`{place} takes numbers up"
        f" to {limit - 1}",
        help=f"declare it `below {limit}`, or give the model {below} rows or classes",
        input=name,
    )


def _name(node: fx.Node) -> str:
    return op_name(node.target).split(".")[0]


def _input(node: fx.Node, inputs: Mapping[str, str]) -> str | None:
    """The input that a value is taken from as it is, if it is."""
    while node.op == "call_function" and _name(node) in _KEEPS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return inputs.get(node.name) if node.op == "placeholder" else None


def _indexed(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """The operands of an op that count something, each with how many there are of it."""
    args = list(node.args)
    if node.op != "call_function" or len(args) < 2:
        return
    name, first, second, rest = _name(node), args[0], args[1], args[2:]
    if not isinstance(first, fx.Node):
        return
    shape: tuple[int, ...] = tuple(getattr(first.meta.get("val"), "shape", ()))
    if name == "embedding" and isinstance(second, fx.Node):
        yield second, shape[0]
    elif name in _LOSSES and isinstance(second, fx.Node) and _are_classes(second, rest):
        yield second, shape[1 if len(shape) > 1 else 0]
    elif name in ("gather", "index_select") and isinstance(second, int):
        yield from ((one, int(shape[second])) for one in rest[:1] if isinstance(one, fx.Node))
    elif name == "index" and isinstance(second, (list, tuple)):
        pairs = zip(second, shape, strict=False)
        yield from ((one, size) for one, size in pairs if isinstance(one, fx.Node))


def _are_classes(target: fx.Node, rest: Sequence[object]) -> bool:
    """Whether a loss's target counts classes, none of which is ignored by a large number."""
    ignored = rest[2] if len(rest) > 2 and isinstance(rest[2], int) else -100
    return not target.meta["val"].is_floating_point() and ignored < 0
