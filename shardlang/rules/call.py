"""One op call in a graph, with its arguments by schema name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shardlang.ir.node import tensor_of, tensors_of

LocalCall = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""Target, args and kwargs of the op that a device runs."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one tensor operand: the argument's name, and its index in a list argument."""

    name: str
    index: int | None
    node: fx.Node


class Call:
    """An op call: its operands, results and other arguments, read by schema name."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.target: Any = node.target
        self.names = argument_names(self.target)
        self.arguments: dict[str, Any] = defaults(self.target)
        self.arguments.update(zip(self.names, node.args, strict=False))
        self.arguments.update(node.kwargs)
        self.slots = tuple(self._slots())

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument, or `default` where the op has none of that name."""
        return self.arguments.get(name, default)

    def _slots(self) -> Iterator[Slot]:
        for name in self.names:
            value = self.arguments.get(name)
            if isinstance(value, fx.Node):
                yield Slot(name, None, value)
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, fx.Node):
                        yield Slot(name, index, item)

    @property
    def operands(self) -> list[fx.Node]:
        """The tensor operands, in schema order."""
        return [slot.node for slot in self.slots]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operands."""
        return [shape_of(tensor_of(slot.node)) for slot in self.slots]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one operand."""
        return shape_of(tensor_of(self.arguments[name]))

    def rank(self, name: str) -> int:
        """Number of dims of one operand."""
        return len(self.shape(name))

    @property
    def results(self) -> list[torch.Tensor]:
        """The fake tensors that the call gives."""
        return tensors_of(self.node)

    @property
    def result_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        return [shape_of(val) for val in self.results]

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.result_shapes[0]

    def has(self, name: str) -> bool:
        """Whether an optional tensor operand is there."""
        return isinstance(self.arguments.get(name), fx.Node)

    def dim(self, name: str = "dim", rank: int | None = None) -> int:
        """A dim argument, counted from the front; `rank` defaults to that of the first operand."""
        rank = len(self.shapes[0]) if rank is None else rank
        value = int(self.arguments[name])
        return value + rank if value < 0 else value

    def dims(self, name: str = "dim", rank: int | None = None) -> tuple[int, ...]:
        """A list-of-dims argument, counted from the front; empty or None means all dims."""
        rank = len(self.shapes[0]) if rank is None else rank
        value = self.arguments[name]
        if value is None or (isinstance(value, (list, tuple)) and not value):
            return tuple(range(rank))
        items = [value] if isinstance(value, int) else list(value)
        return tuple(sorted(d + rank if d < 0 else d for d in items))

    def replace(self, /, **changes: Any) -> LocalCall:
        """The same op with some arguments changed."""
        merged = {**self.arguments, **changes}
        return rebuild(self.target, self.names, merged)

    def with_operands(self, operands: list[fx.Node]) -> LocalCall:
        """The same op on other operands, slot by slot."""
        merged = dict(self.arguments)
        for slot, node in zip(self.slots, operands, strict=True):
            if slot.index is None:
                merged[slot.name] = node
            else:
                merged[slot.name] = list(merged[slot.name])
                merged[slot.name][slot.index] = node
        return rebuild(self.target, self.names, merged)


def rebuild(target: Any, names: list[str], arguments: dict[str, Any]) -> LocalCall:
    """Args and kwargs from arguments by name, leaving out those at their defaults."""
    keyword = keyword_only(target)
    standard = defaults(target)
    args: list[Any] = [
        arguments[name] for name in names if name not in keyword and name in arguments
    ]
    positional = [name for name in names if name not in keyword and name in arguments]
    while args and positional[-1] in standard and _same(args[-1], standard[positional[-1]]):
        args.pop()
        positional.pop()
    kwargs = {
        name: arguments[name]
        for name in names
        if name in keyword
        and name in arguments
        and not (name in standard and _same(arguments[name], standard[name]))
    }
    return target, tuple(args), kwargs


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, fx.Node) and bool(a == b)


def argument_names(target: Any) -> list[str]:
    """Names of an op's arguments, in order."""
    if isinstance(target, torch._ops.OpOverload):
        return [argument.name for argument in target._schema.arguments]
    return list(_signature(target).parameters)


def keyword_only(target: Any) -> set[str]:
    """Names of an op's keyword-only arguments."""
    if isinstance(target, torch._ops.OpOverload):
        return {a.name for a in target._schema.arguments if a.kwarg_only}
    kinds = _signature(target).parameters.values()
    return {p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY}


def defaults(target: Any) -> dict[str, Any]:
    """Default values of an op's arguments."""
    if isinstance(target, torch._ops.OpOverload):
        return {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    parameters = _signature(target).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _signature(target: Any) -> inspect.Signature:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return inspect.Signature()


def shape_of(val: Any) -> tuple[int, ...]:
    """The shape of a fake tensor, as ints."""
    return tuple(int(size) for size in val.shape)
