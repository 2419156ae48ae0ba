"""The calls in a graph's text, their targets and arguments, as objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lark import Token, v_args
from torch import fx
from torch.fx.node import Argument, Target

from shardlang.ir.compat import OpOverload, OpOverloadPacket, overload_names
from shardlang.ir.device_values import LocalIndices, LocalShard, LocalSize, LocalStart, PartNumber
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import constrain
from shardlang.ir.layout import Layout
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.parse_types import Axes, TypeReader
from shardlang.ir.reads import Reads, Run

Functions = Callable[[str], Target | None]
"""From `rules.local:max_over` to the function; None if there is none."""

CONSTANTS: dict[str, bool | None] = {"None": None, "True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Keyword:
    """An argument by its name, and where that stands."""

    name: Token
    value: Argument


@dataclass(frozen=True, slots=True)
class Made:
    """A call as written: what a node is made by, and where its target stands."""

    target: Target
    args: tuple[object, ...]
    place: Place
    kwargs: dict[str, Argument] = field(default_factory=dict)


@v_args(inline=True)
class CallReader(TypeReader):
    """Reads calls and their arguments; nodes that were read are known to what follows."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions
        self.nodes: dict[str, fx.Node] = {}

    values = arguments = TypeReader.every

    def name(self, token: Token) -> Argument:
        return CONSTANTS[token] if token in CONSTANTS else self.find_node(token)

    def find_node(self, token: Token) -> fx.Node:
        found = self.nodes.get(token)
        if found is None:
            remedy = "a node reads what stands above it: write that first, or correct the name"
            raise GraphTextError(f"no node above is called `{token}`", remedy, token)
        return found

    def real(self, token: Token) -> float:
        return float(token)

    def complex_number(self, token: Token) -> complex:
        try:
            return complex(token)
        except ValueError:
            remedy = "write it as Python does: `2j`, `(1-2j)`"
            raise GraphTextError(f"`{token}` is not a number", remedy, token) from None

    def torch_name(self, token: Token) -> Argument:
        found = getattr(torch, token.removeprefix("torch."), None)
        if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
            remedy = "name a dtype, a layout or a memory format: `torch.float32`, `torch.strided`"
            raise GraphTextError(f"there is no `{token}`", remedy, token)
        return found

    def items(self, values: tuple[Argument, ...] | None) -> list[Argument]:
        return list(values or ())

    def device(self, name: str) -> torch.device:
        try:
            return torch.device(name)
        except RuntimeError:
            remedy = 'write `device("cpu")`, as programs do'
            raise GraphTextError(f"there is no device `{name}`", remedy) from None

    def op(self, name: str) -> Target:
        return self._op(name, None)

    def target(self, token: Token) -> Target:
        """An op, one of our functions, or the identity whose layout is stated."""
        if token == "constrain":
            return constrain
        if ":" in token.replace("::", ""):
            return self.function(token)
        return self._op(token, token)

    def _op(self, name: str, at: Token | None) -> OpOverload:
        space, _, own = name.rpartition("::")
        packet, _, overload = own.partition(".")
        found = getattr(getattr(torch.ops, space or "aten"), packet, None)
        made = getattr(found, overload or "default", None)
        if isinstance(made, OpOverload):
            return made
        if not isinstance(found, OpOverloadPacket):
            remedy = "write `linear`, `space::op`, or a function of ours with its module"
            raise GraphTextError(f"there is no op `{name}`", remedy, at)
        known = ", ".join(
            f"`{packet}.{one}`".replace(".default", "") for one in overload_names(found)
        )
        raise GraphTextError(f"there is no op `{name}`", f"its overloads are {known}", at)

    def function(self, token: Token) -> Target:
        """A function of ours."""
        found = self.functions(str(token))
        if found is None:
            remedy = "write its module and its name: `rules.local:max_over`"
            raise GraphTextError(f"there is no function `{token}`", remedy, token)
        return found

    def size(self, dim: DimLayout) -> LocalSize:
        return LocalSize(dim)

    def first(self, dim: DimLayout) -> LocalStart:
        return LocalStart(dim)

    def indices(self, dim: DimLayout) -> LocalIndices:
        return LocalIndices(dim)

    def shard(self, layout: Layout) -> LocalShard:
        return LocalShard(layout)

    def part(self, axes: Axes) -> PartNumber:
        return PartNumber(axes)

    def route(
        self, axes: Axes, rows: DimLayout, by: Token, groups: DimLayout, back: Token | None
    ) -> Route:
        return Route(axes, rows, groups, back is not None, str(by))

    def run(
        self, start: int, stop: int, step: int | None, times: int | None, shift: int | None
    ) -> Run:
        count = len(range(start, stop, step or 1)) if step != 0 else 0
        if count == 0 or (times is not None and times < 1):
            remedy = "write `0:4` for the indices 0 to 3, `3:-1:-1` for the same backwards"
            raise GraphTextError(f"nothing is read from {start} to {stop}", remedy)
        step = 1 if step is None else step
        return Run(start, count, step, 1 if times is None else times, shift or 0)

    def unread(self, word: Token, count: int) -> Run:
        return Run(None, count)

    def reads(self, size: int, *parts: Run | Argument | Token) -> Reads:
        *runs, fill, back = parts
        found = tuple(run for run in runs if isinstance(run, Run))
        filled = fill if isinstance(fill, (int, float, complex)) else 0.0
        return Reads(size, found, filled, back is not None)

    def keyword(self, name: Token, value: Argument) -> Keyword:
        return Keyword(name, value)

    def call(self, target: Token, parts: tuple[Argument | Keyword, ...] | None) -> Made:
        args: list[Argument] = []
        named: dict[str, Argument] = {}
        for part in parts or ():
            if isinstance(part, Keyword):
                if part.name in named:
                    remedy = "leave one out"
                    raise GraphTextError(f"`{part.name}` is given twice", remedy, part.name)
                named[str(part.name)] = part.value
            elif named:
                remedy = "write arguments without a name first"
                last = ", ".join(named)
                raise GraphTextError(f"an argument without a name follows `{last}`", remedy)
            else:
                args.append(part)
        return Made(self.target(target), tuple(args), Place.of(target), named)
