"""The calls in a graph's text, their targets and arguments, as objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lark import Token, v_args
from torch import fx
from torch.fx.node import Argument, Target

from shardlang.ir.compat import OpOverload
from shardlang.ir.device_values import LocalIndices, LocalShard, LocalSize, LocalStart, PartNumber
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import constrain
from shardlang.ir.layout import Layout
from shardlang.ir.parse_types import Axes, GraphTextError, TypeReader

Functions = Callable[[str], Target | None]
"""From `rules.local:max_over` to the function; None if there is none."""

CONSTANTS: dict[str, bool | None] = {"None": None, "True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Keyword:
    """An argument by its name."""

    name: str
    value: Argument


@dataclass(frozen=True, slots=True)
class Made:
    """A call as written: what a node is made by."""

    target: Target
    args: tuple[object, ...]
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
        if token in CONSTANTS:
            return CONSTANTS[token]
        found = self.nodes.get(token)
        if found is None:
            raise GraphTextError(f"no node above is called `{token}`", token.line)
        return found

    def real(self, token: Token) -> float:
        return float(token)

    def complex_number(self, token: Token) -> complex:
        return complex(token)

    def torch_name(self, token: Token) -> Argument:
        found: Argument = getattr(torch, token.removeprefix("torch."), None)
        if found is None:
            raise GraphTextError(f"there is no `{token}`", token.line)
        return found

    def items(self, values: tuple[Argument, ...] | None) -> list[Argument]:
        return list(values or ())

    def device(self, name: str) -> torch.device:
        return torch.device(name)

    def op(self, name: str) -> Target:
        return self.target(Token("TARGET", name))

    def target(self, token: Token) -> Target:
        """An op, one of our functions, or the identity whose layout is stated."""
        if token == "constrain":
            return constrain
        space, found, name = token.partition("::")
        if not found and ":" in token:
            return self.function(token)
        packet, _, overload = (name if found else token).partition(".")
        made = getattr(getattr(torch.ops, space if found else "aten"), packet, None)
        made = getattr(made, overload or "default", None)
        if not isinstance(made, OpOverload):
            raise GraphTextError(f"there is no op `{token}`", token.line)
        return made

    def function(self, token: Token) -> Target:
        """A function of ours."""
        found = self.functions(str(token))
        if found is None:
            raise GraphTextError(f"there is no function `{token}`", token.line)
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

    def keyword(self, name: Token, value: Argument) -> Keyword:
        return Keyword(str(name), value)

    def call(self, target: Token, parts: tuple[Argument | Keyword, ...] | None) -> Made:
        args = tuple(part for part in parts or () if not isinstance(part, Keyword))
        named = {part.name: part.value for part in parts or () if isinstance(part, Keyword)}
        return Made(self.target(target), args, named)
