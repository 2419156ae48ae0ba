"""The parts of a graph's text, as objects: axes, layouts, types and arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lark import Token, Transformer, v_args
from torch import fx
from torch.fx.node import Argument, Target

from shardlang.ir.compat import OpOverload
from shardlang.ir.device_values import LocalIndices, LocalShard, LocalSize, LocalStart, PartNumber
from shardlang.ir.dim_layout import DimLayout, RowOrder
from shardlang.ir.experts.route import Route
from shardlang.ir.factor import Block, Factor
from shardlang.ir.graph import constrain
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.printed_type import dtype_of

Axes = tuple[Axis, ...]
Functions = Callable[[str], Target | None]
"""From `rules.local:max_over` to the function; None if there is none."""

CONSTANTS: dict[str, bool | None] = {"None": None, "True": True, "False": False}


class GraphTextError(ValueError):
    """Text that is no graph: the line, and what is wrong."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")


@dataclass(frozen=True, slots=True)
class Mark:
    """An axis behind a layout: partial or varying."""

    axis: Axis
    partial: bool


@dataclass(frozen=True, slots=True)
class Type:
    """A printed type."""

    dtype: torch.dtype
    layout: Layout


@dataclass(frozen=True, slots=True)
class Wanted:
    """A stated layout as written; None for an open dim, `dims` None where the type says it."""

    dims: tuple[DimLayout | None, ...] | None
    partial: frozenset[Axis] = frozenset()
    place: str = ""


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
class Words(Transformer[Token, object]):
    """Makes the objects; a mesh and nodes that were read are known to what follows."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions
        self.axes_by_name: dict[str, Axis] = {}
        self.nodes: dict[str, fx.Node] = {}
        self.read_mesh = Mesh(())
        self.data: frozenset[Axis] = frozenset()

    def STRING(self, token: Token) -> str:  # noqa: N802
        return str(json.loads(token))

    def INT(self, token: Token) -> int:  # noqa: N802
        return int(token)

    def axis(self, name: Token, size: int, link: Token | None, data: Token | None) -> Axis:
        made = Axis(str(name), size, None if link is None else str(link))
        self.axes_by_name[made.name] = made
        self.data |= {made} if data is not None else frozenset()
        return made

    def mesh(self, *axes: Axis) -> None:
        self.read_mesh = Mesh(axes)

    def find_axis(self, name: Token) -> Axis:
        found = self.axes_by_name.get(name)
        if found is None:
            raise GraphTextError(f"the mesh has no axis `{name}`", name.line)
        return found

    def axes(self, *names: Token) -> Axes:
        return tuple(map(self.find_axis, names))

    def ints(self, *numbers: int) -> tuple[int, ...]:
        return numbers

    def numbers(self, found: tuple[int, ...] | None) -> tuple[int, ...]:
        return found or ()

    def factor(self, size: int, axes: Axes | None) -> Factor:
        return Factor(size, axes or ())

    def group(self, *factors: Factor) -> Block:
        return factors

    def single(self, factor: Factor) -> Block:
        return (factor,)

    def whole(self, size: int) -> DimLayout:
        return DimLayout.whole(size)

    def split(self, size: int, axes: Axes, packed: tuple[int, ...] | None) -> DimLayout:
        if packed is None:
            return DimLayout.shard(size, axes)
        return DimLayout.shard(size, axes, packed if len(packed) > 1 else packed[0])

    def grouped(self, block: Block) -> DimLayout:
        return DimLayout((block,))

    def blocks(self, *blocks: Block) -> DimLayout:
        return DimLayout(blocks)

    def ordered(self, shards: DimLayout, by: Token, groups: DimLayout) -> DimLayout:
        return shards.ordered(RowOrder(str(by), groups))

    def open(self) -> str:
        return "?"

    def partial(self, name: Token) -> Mark:
        return Mark(self.find_axis(name), True)

    def varying(self, name: Token) -> Mark:
        return Mark(self.find_axis(name), False)

    def layout(self, *parts: DimLayout | Mark | None) -> Layout:
        marks = [part for part in parts if isinstance(part, Mark)]
        return Layout(
            tuple(part for part in parts if isinstance(part, DimLayout)),
            frozenset(mark.axis for mark in marks if mark.partial),
            frozenset(mark.axis for mark in marks if not mark.partial),
        )

    def stated(self, *parts: DimLayout | str | Mark | None) -> Wanted:
        given = (part for part in parts if isinstance(part, (DimLayout, str)))
        dims = tuple(None if isinstance(part, str) else part for part in given)
        marks = frozenset(part.axis for part in parts if isinstance(part, Mark))
        return Wanted(dims, marks)

    def typed(self, name: Token, layout: Layout) -> Type:
        found = dtype_of(name)
        if found is None:
            raise GraphTextError(f"no dtype is called `{name}`", name.line)
        return Type(found, layout)

    def nothing(self, word: Token) -> None:
        return None

    def several(self, *types: Type | None) -> tuple[Type | None, ...]:
        return types

    def name(self, token: Token) -> Argument:
        if token in CONSTANTS:
            return CONSTANTS[token]
        found = self.nodes.get(token)
        if found is None:
            raise GraphTextError(f"no node above is called `{token}`", token.line)
        return found

    def integer(self, number: int) -> int:
        return number

    def string(self, text: str) -> str:
        return text

    def real(self, token: Token) -> float:
        return float(token)

    def complex_number(self, token: Token) -> complex:
        return complex(token)

    def torch_name(self, token: Token) -> Argument:
        found: Argument = getattr(torch, token.removeprefix("torch."), None)
        if found is None:
            raise GraphTextError(f"there is no `{token}`", token.line)
        return found

    def values(self, *values: Argument) -> tuple[Argument, ...]:
        return values

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

    def arguments(self, *parts: Argument | Keyword) -> tuple[Argument | Keyword, ...]:
        return parts

    def call(self, target: Token, parts: tuple[Argument | Keyword, ...] | None) -> Made:
        args = tuple(part for part in parts or () if not isinstance(part, Keyword))
        named = {part.name: part.value for part in parts or () if isinstance(part, Keyword)}
        return Made(self.target(target), args, named)
