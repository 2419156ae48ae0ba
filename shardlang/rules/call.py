"""One op call in a graph, with its arguments by schema name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.node import tensor_of, tensors_of
from shardlang.rules.schema import Operator, argument_names, defaults, keyword_only

LocalCall = tuple[Operator, tuple[object, ...], dict[str, object]]
"""Target, args and kwargs of the op that a device runs."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one tensor operand: the argument's name, and its index in a list argument."""

    name: str
    index: int | None
    node: fx.Node


class Call:
    """An op call: its operands, results and other arguments, read by schema name.

    An argument that is there, but is not what a rule reads it as, is an error of the rule: the
    readers assert what they promise.
    """

    def __init__(self, node: fx.Node) -> None:
        assert callable(node.target), f"{node} calls no function"
        self.node = node
        self.target: Operator = node.target
        self.names = argument_names(self.target)
        self.arguments: dict[str, object] = defaults(self.target)
        self.arguments.update(zip(self.names, node.args, strict=False))
        self.arguments.update(node.kwargs)
        self.slots = tuple(self._slots())

    @property
    def overload(self) -> OpOverload:
        """The op that is called, where it is no function in the place of one."""
        assert isinstance(self.target, OpOverload), f"{self.node} calls no op"
        return self.target

    def __getitem__(self, name: str) -> object:
        """The argument as it is, to be passed on."""
        return self.arguments[name]

    def get(self, name: str, default: object = None) -> object:
        """The same; `default` where the op has no argument of that name."""
        return self.arguments.get(name, default)

    def operand(self, name: str) -> fx.Node:
        """A tensor operand."""
        value = self.arguments[name]
        return value if isinstance(value, fx.Node) else self._differs(name, "a tensor")

    def optional(self, name: str) -> fx.Node | None:
        """A tensor operand that may be absent."""
        return self.operand(name) if self.arguments[name] is not None else None

    def operand_list(self, name: str) -> list[fx.Node | None]:
        """A list of tensor operands, each of which may be absent."""
        found: list[fx.Node | None] = []
        for item in self.sequence(name):
            if item is not None and not isinstance(item, fx.Node):
                self._differs(name, "a list of tensors")
            found.append(item)
        return found

    def sequence(self, name: str) -> list[object]:
        """A list argument."""
        value = self.arguments[name]
        return list(value) if isinstance(value, (list, tuple)) else self._differs(name, "a list")

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; `default` where the op has no argument of that name."""
        value = self.arguments.get(name, default)
        return value if isinstance(value, int) else self._differs(name, "a whole number")

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers."""
        found = self.sequence(name)
        numbers = [item for item in found if isinstance(item, int)]
        return numbers if len(numbers) == len(found) else self._differs(name, "whole numbers")

    def number(self, name: str, default: float | None = None) -> float:
        """A real number; `default` where the op has no argument of that name."""
        value = self.arguments.get(name, default)
        return value if isinstance(value, (int, float)) else self._differs(name, "a number")

    def scalar(self, name: str) -> complex:
        """A number, real or complex."""
        value = self.arguments[name]
        if isinstance(value, (int, float, complex)):
            return value
        return self._differs(name, "a number")

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value, false where it is None; `default` where the op has none of that name."""
        value = self.arguments.get(name, default)
        known = value is None or isinstance(value, int)
        return bool(value) if known else self._differs(name, "yes or no")

    def dtype(self, name: str) -> torch.dtype | None:
        """A dtype that may be absent; None as well where the op has no argument of that name."""
        value = self.arguments.get(name)
        if value is None or isinstance(value, torch.dtype):
            return value
        return self._differs(name, "a dtype")

    def text(self, name: str) -> str:
        """A word or another text."""
        value = self.arguments[name]
        return value if isinstance(value, str) else self._differs(name, "a text")

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
        return shape_of(tensor_of(self.operand(name)))

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
        return _from_front(self.integer(name), rank)

    def dims(self, name: str = "dim", rank: int | None = None) -> tuple[int, ...]:
        """A list-of-dims argument, counted from the front; empty or None means all dims."""
        rank = len(self.shapes[0]) if rank is None else rank
        value = self.arguments[name]
        if value is None or value in ((), []):
            return tuple(range(rank))
        items = [value] if isinstance(value, int) else self.integers(name)
        return tuple(sorted(_from_front(d, rank) for d in items))

    def _differs(self, name: str, kind: str) -> NoReturn:
        value = self.arguments.get(name)
        raise AssertionError(f"{self.node.format_node()}: `{name}` is {value!r}, not {kind}")

    def replace(self, /, **changes: object) -> LocalCall:
        """The same op with some arguments changed."""
        merged = {**self.arguments, **changes}
        return rebuild(self.target, self.names, merged)

    def with_operands(self, operands: list[fx.Node]) -> LocalCall:
        """The same op on other operands, slot by slot."""
        merged = dict(self.arguments)
        lists = {
            slot.name: self.sequence(slot.name) for slot in self.slots if slot.index is not None
        }
        for slot, node in zip(self.slots, operands, strict=True):
            if slot.index is None:
                merged[slot.name] = node
            else:
                lists[slot.name][slot.index] = node
        return rebuild(self.target, self.names, {**merged, **lists})


def _from_front(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def rebuild(target: Operator, names: Sequence[str], arguments: dict[str, object]) -> LocalCall:
    """Args and kwargs from arguments by name, leaving out those at their defaults."""
    keyword = keyword_only(target)
    standard = defaults(target)
    args = [arguments[name] for name in names if name not in keyword and name in arguments]
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


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and not isinstance(a, fx.Node) and bool(a == b)


def shape_of(val: torch.Tensor) -> tuple[int, ...]:
    """The shape of a fake tensor, as ints."""
    return tuple(int(size) for size in val.shape)
