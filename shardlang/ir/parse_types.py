"""The mesh, the layouts and the types in a graph's text, as objects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeVar

import torch
from lark import Token, Transformer, v_args

from shardlang.ir.dim_layout import DimLayout, RowOrder
from shardlang.ir.factor import Block, Factor
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.printed_type import dtype_of

Axes = tuple[Axis, ...]
Item = TypeVar("Item")


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


@v_args(inline=True)
class TypeReader(Transformer[Token, object]):
    """Reads meshes, layouts and types; a mesh that was read is known to what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.axes_by_name: dict[str, Axis] = {}
        self.read_mesh = Mesh(())
        self.data: frozenset[Axis] = frozenset()

    def STRING(self, token: Token) -> str:  # noqa: N802
        return str(json.loads(token))

    def INT(self, token: Token) -> int:  # noqa: N802
        return int(token)

    def every(self, *items: Item) -> tuple[Item, ...]:
        """What a rule lists, one after the other."""
        return items

    ints = group = several = every

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

    def numbers(self, found: tuple[int, ...] | None) -> tuple[int, ...]:
        return found or ()

    def factor(self, size: int, axes: Axes | None) -> Factor:
        return Factor(size, axes or ())

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
