"""The mesh, the layouts and the types in a graph's text, as objects."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from lark import Token, Transformer, v_args

from shardlang.ir.dim_layout import DimLayout, RowOrder
from shardlang.ir.factor import Block, Factor
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.printed_type import dtype_of

Axes = tuple[Axis, ...]
Item = TypeVar("Item")

LARGEST = 2**63 - 1
"""PyTorch's numbers have 64 bits; a slice up to the end says so with the largest."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands behind a layout: axes, or parts of one, that are partial or varying."""

    axes: tuple[Axis, ...]
    partial: bool


@dataclass(frozen=True, slots=True)
class Type:
    """A printed type, and where it stands."""

    dtype: torch.dtype
    layout: Layout
    place: Place


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
        self.data: set[str] = set()

    def STRING(self, token: Token) -> str:  # noqa: N802
        try:
            return str(json.loads(token))
        except ValueError:
            remedy = 'after a backslash stand `"`, `\\`, `n`, `t`, `r` or `uXXXX`'
            raise GraphTextError("the text in quotes cannot be read", remedy, token) from None

    def INT(self, token: Token) -> int:  # noqa: N802
        if len(token) > len(str(-LARGEST)) or not -LARGEST <= int(token) <= LARGEST:
            raise GraphTextError("the number is too large", f"numbers go to {LARGEST}", token)
        return int(token)

    def every(self, *items: Item) -> tuple[Item, ...]:
        """What a rule lists, one after the other."""
        return items

    ints = group = several = every

    def axis(self, name: Token, size: int, link: Token | None, data: Token | None) -> Axis:
        if name in self.axes_by_name:
            raise GraphTextError(f"two axes are called `{name}`", "give each its own name", name)
        if size < 1:
            raise GraphTextError(f"the axis `{name}` has no devices", "give it 1 or more", name)
        made = Axis(str(name), size, None if link is None else str(link))
        self.axes_by_name[made.name] = made
        self.data |= {made.name} if data is not None else set()
        return made

    def mesh_of(self, axes: Sequence[Axis]) -> Mesh:
        """The mesh of the axes as written, parts of one axis told from axes."""
        found: list[Axis] = []
        for of, parts in itertools.groupby(axes, lambda axis: re.split("[:/]", axis.name)[0]):
            mine = list(parts)
            whole = Axis(of, math.prod(part.size for part in mine), mine[0].link)
            after = 1
            for part in mine:
                found.append(whole.cut(after, part.size))
                after *= part.size
                if found[-1].name != part.name:
                    wrong = f"`{part.name}` is called `{found[-1].name}` where it stands"
                    raise GraphTextError(wrong, "name the parts of an axis major to minor")
        self.axes_by_name = {axis.name: axis for axis in found}
        return Mesh(tuple(found))

    def find_axis(self, name: Token) -> Axis:
        found = self.axes_by_name.get(name)
        if found is None:
            known = ", ".join(f"`{known}`" for known in self.axes_by_name)
            raise GraphTextError(f"the mesh has no axis `{name}`", f"its axes are {known}", name)
        return found

    def axes(self, *names: Token) -> Axes:
        return tuple(axis for name in names for axis in self.find_axes(name))

    def find_axes(self, name: Token) -> Axes:
        """The axis of that name, or the parts that make it up."""
        try:
            return Mesh(tuple(self.axes_by_name.values())).named([name])
        except KeyError:
            return (self.find_axis(name),)

    def numbers(self, found: tuple[int, ...] | None) -> tuple[int, ...]:
        return found or ()

    def factor(self, size: int, axes: Axes | None) -> Factor:
        return Factor(sized(size), axes or ())

    def single(self, factor: Factor) -> Block:
        return (factor,)

    def whole(self, size: int) -> DimLayout:
        return DimLayout.whole(sized(size))

    def split(self, size: int, axes: Axes, packed: tuple[int, ...] | None) -> DimLayout:
        blocks = packed or (1,)
        if min(blocks) < 1 or sized(size) % sum(blocks):
            shares = ", ".join(map(str, blocks))
            remedy = "write a size that the sum of the shares divides"
            raise GraphTextError(f"{size} cannot be packed in shares of {shares}", remedy)
        return DimLayout.shard(size, axes, blocks if len(blocks) > 1 else blocks[0])

    def grouped(self, block: Block) -> DimLayout:
        return DimLayout((block,))

    def blocks(self, *blocks: Block) -> DimLayout:
        return DimLayout(blocks)

    def ordered(self, shards: DimLayout, by: Token, groups: DimLayout) -> DimLayout:
        return shards.ordered(RowOrder(str(by), groups))

    def open(self) -> str:
        return "?"

    def partial(self, name: Token) -> Mark:
        return Mark(self.find_axes(name), True)

    def varying(self, name: Token) -> Mark:
        return Mark(self.find_axes(name), False)

    def layout(self, *parts: DimLayout | Mark | None) -> Layout:
        dims = tuple(part for part in parts if isinstance(part, DimLayout))
        marks = [part for part in parts if isinstance(part, Mark)]
        used_once([*(axis for dim in dims for axis in dim.axes), *_marked(marks)])
        return Layout(
            dims,
            frozenset(_marked(mark for mark in marks if mark.partial)),
            frozenset(_marked(mark for mark in marks if not mark.partial)),
        )

    def stated(self, *parts: DimLayout | str | Mark | None) -> Wanted:
        given = (part for part in parts if isinstance(part, (DimLayout, str)))
        dims = tuple(None if isinstance(part, str) else part for part in given)
        marks = [part for part in parts if isinstance(part, Mark)]
        split = (axis for dim in dims if dim is not None for axis in dim.axes)
        used_once([*split, *_marked(marks)])
        if not all(mark.partial for mark in marks):
            remedy = "write `+` for an axis with partial sums, and nothing for one without"
            raise GraphTextError("a stated layout has no `~`", remedy)
        return Wanted(dims, frozenset(_marked(marks)))

    def typed(self, name: Token, layout: Layout) -> Type:
        found = dtype_of(name)
        if found is None:
            remedy = "write `f32`, `bf16`, `i64`, `bool` or another of PyTorch's"
            raise GraphTextError(f"no dtype is called `{name}`", remedy, name)
        return Type(found, layout, Place.of(name))

    def nothing(self, word: Token) -> None:
        return None


def _marked(marks: Iterable[Mark]) -> Axes:
    return tuple(axis for mark in marks for axis in mark.axes)


def sized(size: int) -> int:
    """The size of a dim or a factor, which is not negative."""
    if size < 0:
        raise GraphTextError(f"a dim has no size of {size}", "write 0 or more")
    return size


def used_once(axes: Sequence[Axis]) -> None:
    """Refuse a layout in which an axis stands twice."""
    for axis in axes:
        if axes.count(axis) > 1:
            remedy = "an axis splits one dim of a layout, or is marked by one `+` or `~`"
            raise GraphTextError(f"the layout names the axis `{axis}` twice", remedy)
