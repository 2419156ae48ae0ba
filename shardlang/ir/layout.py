"""Layouts: how one tensor lies on the mesh.

A dim is a row of *blocks*, each a mixed-radix number of *factors*, major to minor; every factor
may be split over a product of mesh axes. A plain dim is one block of one factor. `tp(3)` is one
block `(3)(n/3 @tp)`; unequal packed blocks are several blocks; a flattened `batch x seq` dim whose
parts are both sharded is `(8@dp)(128@tp)`. So a reshape only regroups factors, and uneven heads are
`(5@tp)(64)`: the split falls between heads, not inside one.

Splits are balanced: over n devices a size s gives s // n each and one more to the first s % n. A
product of axes splits by its major axis first, then each shard by the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from shardlang.ir.mesh import Axis, Coord


def split(size: int, parts: int, index: int) -> tuple[int, int]:
    """Start and length of shard `index` of `size` split evenly over `parts`."""
    base, extra = divmod(size, parts)
    return index * base + min(index, extra), base + (index < extra)


@dataclass(frozen=True, slots=True)
class Factor:
    """A stretch of `size` consecutive indices, split over `axes` (major to minor)."""

    size: int
    axes: tuple[Axis, ...] = ()

    @property
    def ways(self) -> int:
        """Number of shards."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def even(self) -> bool:
        """Whether every shard has the same length."""
        return self.size % self.ways == 0

    def span(self, coord: Coord) -> tuple[int, int]:
        """Start and length of the shard at `coord`."""
        start, length = 0, self.size
        for axis in self.axes:
            offset, length = split(length, axis.size, coord[axis.name])
            start += offset
        return start, length

    def __str__(self) -> str:
        return f"{self.size}@{'*'.join(a.name for a in self.axes)}" if self.axes else str(self.size)


Block = tuple[Factor, ...]


def _merge_pair(left: Factor, right: Factor) -> Factor | None:
    """One factor that splits as `left` then `right` do, if there is one."""
    size = left.size * right.size
    if not right.axes and (left.even or right.size == 1):
        return Factor(size, left.axes)
    if left.size == left.ways:
        return Factor(size, left.axes + right.axes)
    return None


def _canonical_block(factors: Iterable[Factor]) -> Block:
    merged: list[Factor] = []
    for factor in factors:
        if factor.size == 1 and not factor.axes:
            continue
        joined = _merge_pair(merged[-1], factor) if merged else None
        if joined is None:
            merged.append(factor)
        else:
            merged[-1] = joined
    return tuple(merged) or (Factor(1),)


def _canonical(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Equal layouts get equal blocks."""
    done = [b for b in (_canonical_block(block) for block in blocks) if _size(b) > 0]
    if not done:
        return ((Factor(0),),)
    if all(not factor.axes for block in done for factor in block):
        return ((Factor(sum(_size(block) for block in done)),),)
    return tuple(_run_lengths(done)) if len(done) > 1 else tuple(done)


def _run_lengths(blocks: Iterable[Block]) -> list[Block]:
    """Blocks alike that follow one another, as one block with their count as its major factor."""
    runs: list[tuple[int, Block]] = []
    for block in blocks:
        count, body = _repeated(block)
        if runs and runs[-1][1] == body:
            count += runs.pop()[0]
        runs.append((count, body))
    return [_canonical_block((Factor(count), *body)) for count, body in runs]


def _repeated(block: Block) -> tuple[int, Block]:
    """How often a block repeats a smaller one, and that one."""
    head = block[0]
    return (1, block) if head.axes else (head.size, block[1:])


def _stretches(dim: DimLayout) -> list[Block]:
    """The blocks of a dim, those that repeat a smaller one written out."""
    found: list[Block] = []
    for block in dim.blocks:
        count, body = _repeated(block)
        found += [body] * count if body else [block]
    return found


def _size(block: Block) -> int:
    return math.prod(factor.size for factor in block)


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The order of rows that a route has sent to the devices that hold their groups.

    Attributes:
        by: the name of the value that says which group each row has.
        groups: how the groups lie.
    """

    by: str
    groups: DimLayout

    def __str__(self) -> str:
        return f"by {self.by} of {self.groups}"


@dataclass(frozen=True, slots=True)
class DimLayout:
    """How one dim lies on the mesh; always canonical, so equal layouts compare equal.

    Attributes:
        order: for rows that a route has sent out, their order; the shards are then of the sizes
            that the groups make, and no reshard but the way back changes how the dim lies.
    """

    blocks: tuple[Block, ...]
    order: RowOrder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", _canonical(self.blocks))

    @staticmethod
    def whole(size: int) -> DimLayout:
        """The dim on every device in full."""
        return DimLayout(((Factor(size),),))

    @staticmethod
    def shard(
        size: int, axes: tuple[Axis, ...], blocks: int | tuple[int, ...] = 1, unit: int = 1
    ) -> DimLayout:
        """The dim split over `axes`.

        `blocks` packs the dim: a count of equal blocks, or their ratios, each split by itself.
        `unit` indices always stay together.

        Raises:
            ValueError: the blocks or units do not divide the size.
        """
        ratios = (1,) * blocks if isinstance(blocks, int) else blocks
        total = sum(ratios)
        if total <= 0 or size % total or any(size // total * r % unit for r in ratios):
            raise ValueError(f"a dim of {size} is not made of blocks {ratios} in units of {unit}")
        each = size // total
        return DimLayout(tuple((Factor(each * r // unit, axes), Factor(unit)) for r in ratios))

    @property
    def size(self) -> int:
        """The global size."""
        return sum(_size(block) for block in self.blocks)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes that split the dim, major to minor."""
        if len(self.blocks) == 1 and len(self.blocks[0]) == 1:
            return self.blocks[0][0].axes
        seen: dict[Axis, None] = {}
        for block in self.blocks:
            for factor in block:
                seen.update(dict.fromkeys(factor.axes))
        return tuple(seen)

    @property
    def plain(self) -> bool:
        """Whether the dim is one factor: contiguous shards."""
        return len(self.blocks) == 1 and len(self.blocks[0]) == 1

    @property
    def even(self) -> bool:
        """Whether every device holds the same number of indices."""
        return all(factor.even for block in self.blocks for factor in block)

    def local_size(self, coord: Coord) -> int:
        """Number of indices on the device at `coord`."""
        return sum(math.prod(f.span(coord)[1] for f in block) for block in self.blocks)

    def start(self, coord: Coord) -> int:
        """First global index on the device at `coord`, for a plain dim."""
        assert self.plain, f"{self} is not contiguous"
        return self.blocks[0][0].span(coord)[0]

    def min_local_size(self) -> int:
        """The smallest number of indices on any device."""
        return sum(math.prod(_floor(f) for f in block) for block in self.blocks)

    def max_local_size(self) -> int:
        """The largest number of indices on any device, which the first device holds."""
        return self.local_size(_ZERO)

    def indices(self, coord: Coord) -> list[int]:
        """The global indices on the device at `coord`, in local order."""
        found: list[int] = []
        offset = 0
        for block in self.blocks:
            places = [0]
            for factor in block:
                start, length = factor.span(coord)
                places = [p * factor.size + start + i for p in places for i in range(length)]
            found += [offset + place for place in places]
            offset += _size(block)
        return found

    def without(self, axes: Iterable[Axis]) -> DimLayout:
        """The layout with `axes` removed wherever they stand."""
        mine = self.axes
        if not mine or not (gone := set(axes)).intersection(mine):
            return self
        return self._map(lambda kept: tuple(axis for axis in kept if axis not in gone))

    def only(self, axes: Iterable[Axis]) -> DimLayout:
        """The layout with every axis but `axes` removed."""
        mine = self.axes
        if not mine:
            return self
        keep = set(axes)
        return self.without(axis for axis in mine if axis not in keep)

    def ordered(self, order: RowOrder | None) -> DimLayout:
        """The same shards, with their rows in another order."""
        return DimLayout(self.blocks, order)

    def _map(self, change: object) -> DimLayout:
        return DimLayout(
            tuple(
                tuple(Factor(f.size, change(f.axes)) for f in block)  # type: ignore[operator]
                for block in self.blocks
            ),
            self.order,
        )

    def __str__(self) -> str:
        return self._split_text() + (f" {self.order}" if self.order is not None else "")

    def _split_text(self) -> str:
        text = _plain_text(self)
        if text is not None:
            return text
        shown = [
            "(" + " ".join(str(f) for f in b) + ")" if len(b) > 1 else str(b[0])
            for b in self.blocks
        ]
        return shown[0] if len(shown) == 1 else "{" + " | ".join(shown) + "}"


class _Zero(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


_ZERO = _Zero()


def _floor(factor: Factor) -> int:
    size = factor.size
    for axis in factor.axes:
        size //= axis.size
    return size


def _plain_text(dim: DimLayout) -> str | None:
    """`2304@tp(3)` or `80@tp(64,8,8)` where the layout can be written so."""
    if dim.plain:
        return str(dim.blocks[0][0])
    axes = dim.axes
    names = "*".join(axis.name for axis in axes)
    if len(dim.blocks) == 1:
        block = dim.blocks[0]
        if len(block) == 2 and not block[0].axes and block[1].axes == axes:
            return f"{dim.size}@{names}({block[0].size})"
        return None
    stretches = _stretches(dim)
    if any(len(block) != 1 or block[0].axes != axes for block in stretches):
        return None
    sizes = [block[0].size for block in stretches]
    unit = math.gcd(*sizes)
    return f"{dim.size}@{names}({','.join(str(s // unit) for s in sizes)})"


def join_factors(parts: Iterable[DimLayout]) -> DimLayout | None:
    """The dim whose mixed-radix digits are `parts`, major to minor; None if it cannot be written.

    A part of several unequal blocks can only be the major one when the rest are whole.
    """
    blocks: list[Block] = [()]
    for part in parts:
        if len(part.blocks) == 1:
            blocks = [block + part.blocks[0] for block in blocks]
        elif all(_size(block) == 1 for block in blocks):
            blocks = [block + more for block in blocks for more in part.blocks]
        else:
            return None
    return DimLayout(tuple(blocks))


def join_blocks(parts: Iterable[DimLayout]) -> DimLayout:
    """The dim that is `parts` one after the other."""
    return DimLayout(tuple(block for part in parts for block in part.blocks))


def split_blocks(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[tuple[DimLayout, ...], set[Axis]]:
    """Cut a dim into consecutive stretches; the axes that do not fit the cut are dropped.

    Returns the layout of each stretch, and the dropped axes.
    """
    if len(sizes) == 1:
        return (dim,), set()
    kept = dim
    while kept.axes:
        parts = _cut(kept, sizes)
        if parts is not None:
            return parts, set(dim.axes) - set(kept.axes)
        kept = kept.without(kept.axes[-1:])
    return tuple(DimLayout.whole(size) for size in sizes), set(dim.axes)


def _cut(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[DimLayout, ...] | None:
    """Exact cut of a dim along its block borders."""
    parts, queue = [], _stretches(dim)
    for size in sizes:
        taken: list[Block] = []
        while sum(_size(b) for b in taken) < size and queue:
            taken.append(queue.pop(0))
        if sum(_size(b) for b in taken) != size:
            return None
        parts.append(DimLayout(tuple(taken)) if taken else DimLayout.whole(0))
    return None if queue else tuple(parts)


def split_factors(
    dim: DimLayout, sizes: tuple[int, ...]
) -> tuple[tuple[DimLayout, ...], set[Axis]]:
    """Write a dim as mixed-radix digits of the given sizes, major to minor.

    Axes that no digit can carry are dropped (a head count that does not divide, say). Returns the
    layout of each digit, and the dropped axes. Only the digits' product must equal the size.
    """
    if len(sizes) == 1:
        return (dim,), set()
    kept = dim
    while True:
        digits = _digits(kept, sizes)
        if digits is not None:
            return digits, set(dim.axes) - set(kept.axes)
        kept = kept.without(kept.axes[-1:])


def _digits(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[DimLayout, ...] | None:
    """Exact digits of a dim, or None."""
    if len(dim.blocks) > 1:
        return _block_digits(dim, sizes)
    queue = list(dim.blocks[0])
    digits: list[DimLayout] = []
    for size in sizes:
        taken = _take(queue, size)
        if taken is None:
            return None
        digits.append(DimLayout((tuple(taken),)))
    return tuple(digits) if all(f.size == 1 and not f.axes for f in queue) else None


def _block_digits(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[DimLayout, ...] | None:
    """Digits of an unequally packed dim: the first digit of size above 1 carries the blocks."""
    major = next((i for i, size in enumerate(sizes) if size > 1), 0)
    minor = math.prod(sizes[major + 1 :])
    heads: list[Block] = []
    for block in dim.blocks:
        queue = list(block)
        if _size(block) % minor:
            return None
        head = _take(queue, _size(block) // minor)
        if head is None or any(f.axes for f in queue):
            return None
        heads.append(tuple(head))
    ones = [DimLayout.whole(1)] * major
    rest = [DimLayout.whole(size) for size in sizes[major + 1 :]]
    return (*ones, DimLayout(tuple(heads)), *rest)


def _take(queue: list[Factor], size: int) -> list[Factor] | None:
    """Take factors worth `size` off the front of the queue, cutting the last one if need be."""
    taken: list[Factor] = []
    while size > 1:
        if not queue:
            return None
        head = queue.pop(0)
        if size % head.size == 0:
            taken.append(head)
            size //= head.size
            continue
        shards = _cut_factor(head, size)
        if shards is None:
            return None
        taken.append(shards[0])
        queue.insert(0, shards[1])
        size = 1
    return taken


def _cut_factor(factor: Factor, size: int) -> tuple[Factor, Factor] | None:
    """`factor` as a major digit of `size` and the rest, where the split allows it."""
    if factor.size % size:
        return None
    rest = factor.size // size
    if size % factor.ways == 0:
        return Factor(size, factor.axes), Factor(rest)
    for count in range(len(factor.axes), -1, -1):
        major, minor = Factor(size, factor.axes[:count]), Factor(rest, factor.axes[count:])
        if major.size == major.ways:
            return major, minor
    return None


@dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor lies on the mesh.

    Attributes:
        dims: one `DimLayout` per tensor dim.
        partial: axes along which each device holds a summand (state P).
        varying: axes along which every device holds the whole value and a summand of the
            gradient (state R). Any axis named nowhere is invariant (state I).
    """

    dims: tuple[DimLayout, ...]
    partial: frozenset[Axis] = frozenset()
    varying: frozenset[Axis] = frozenset()

    @staticmethod
    def whole(shape: Iterable[int]) -> Layout:
        """Every device holds the whole tensor."""
        return Layout(tuple(DimLayout.whole(int(size)) for size in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The global shape."""
        return tuple(dim.size for dim in self.dims)

    @property
    def sharded(self) -> tuple[Axis, ...]:
        """Axes that split some dim."""
        return tuple(axis for dim in self.dims for axis in dim.axes)

    def dim_of(self, axis: Axis) -> int | None:
        """The dim that `axis` splits."""
        return next((i for i, dim in enumerate(self.dims) if axis in dim.axes), None)

    def state(self, axis: Axis) -> str:
        """`S`, `P`, `R` or `I` along one axis."""
        if self.dim_of(axis) is not None:
            return "S"
        return "P" if axis in self.partial else "R" if axis in self.varying else "I"

    def local_shape(self, coord: Coord) -> tuple[int, ...]:
        """The shape of the shard on the device at `coord`."""
        return tuple(dim.local_size(coord) for dim in self.dims)

    def max_local_shape(self) -> tuple[int, ...]:
        """The largest local shape, which the first device holds."""
        return tuple(dim.max_local_size() for dim in self.dims)

    def held(self) -> int:
        """Elements on the fullest device."""
        return math.prod(self.max_local_shape())

    def replaced(self, dim: int, layout: DimLayout) -> Layout:
        """This layout with one dim laid out anew."""
        dims = (*self.dims[:dim], layout, *self.dims[dim + 1 :])
        return Layout(dims, self.partial, self.varying)

    def without(self, axes: Iterable[Axis]) -> Layout:
        """This layout with the dims that `axes` split no longer split by them."""
        gone = tuple(axes)
        return Layout(tuple(dim.without(gone) for dim in self.dims), self.partial, self.varying)

    @property
    def orders(self) -> tuple[RowOrder | None, ...]:
        """The order of every dim's rows, None for rows in their own places."""
        return tuple(dim.order for dim in self.dims)

    def in_place(self) -> Layout:
        """This layout with the rows of every dim in their own places."""
        if not any(self.orders):
            return self
        dims = tuple(dim.ordered(None) for dim in self.dims)
        return Layout(dims, self.partial, self.varying)

    def dual(self) -> Layout:
        """The layout of its gradient: whole for each summand, a summand for each `R` copy."""
        return Layout(self.dims, self.varying, self.partial)

    def unlabelled(self) -> Layout:
        """The same placement with no gradient label."""
        return Layout(self.dims, self.partial) if self.varying else self

    def __str__(self) -> str:
        marks = [f"+{a.name}" for a in sorted(self.partial)] + [
            f"~{a.name}" for a in sorted(self.varying)
        ]
        return " ".join(["[" + ", ".join(str(dim) for dim in self.dims) + "]", *marks])


_SHORT = {
    "torch.float64": "f64", "torch.float32": "f32", "torch.float16": "f16",
    "torch.bfloat16": "bf16",
    "torch.int64": "i64", "torch.int32": "i32", "torch.int16": "i16", "torch.int8": "i8",
    "torch.uint8": "u8", "torch.bool": "bool", "torch.complex64": "c64", "torch.complex128": "c128",
}  # fmt: skip


def dtype_name(dtype: object) -> str:
    """The short name of a torch dtype, as the language writes it."""
    return _SHORT.get(str(dtype), str(dtype).removeprefix("torch."))


def dtype_of(name: str) -> torch.dtype | None:
    """The torch dtype of a short name; None if there is none."""
    full = next((known for known, short in _SHORT.items() if short == name), name)
    found = getattr(torch, full.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


def printed_type(dtype: object, layout: Layout) -> str:
    """The printed type of a value: `f32[8@dp, 128, 2304@tp(3)] +ep ~cp`."""
    return dtype_name(dtype) + str(layout)


def all_shards_nonempty(dim: DimLayout) -> bool:
    """Whether every factor has at least one index on every device."""
    return all(_floor(f) > 0 for f in itertools.chain.from_iterable(dim.blocks))
