"""All legal ways to put one or two mesh axes on the factors and linear sets of a rule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.rule import Rule, Sharding
from shardlang.passes.propagate.adopt import writable


@dataclass(frozen=True, slots=True)
class Choice:
    """What one axis does: split a factor (with those linked to it), or pass partial sums.

    Attributes:
        packed: split the dim as two unequal blocks, each by itself.
    """

    factors: tuple[str, ...] = ()
    linear: frozenset[int] = frozenset()
    packed: bool = False

    def __str__(self) -> str:
        if self.linear:
            return "linear in " + ",".join(str(i) for i in sorted(self.linear))
        return "=".join(self.factors) + " packed" * self.packed


@dataclass(frozen=True, slots=True)
class Assignment:
    """A mesh, and what each of its axes does."""

    mesh: Mesh
    choices: tuple[Choice, ...]

    def sharding(self, rule: Rule) -> Sharding | None:
        """The sharding of the op; None where it cannot be written or leaves a shard empty."""
        made = Sharding.whole(rule)
        split: dict[str, list[Axis]] = {}
        packed: set[str] = set()
        for axis, choice in zip(self.mesh.axes, self.choices, strict=True):
            if choice.linear:
                made.linear[axis] = choice.linear
            for name in choice.factors:
                split.setdefault(name, []).append(axis)
                packed |= {name} if choice.packed else set()
        for name, axes in split.items():
            dim = _split(rule.size(name), tuple(axes), name in packed)
            if dim is None:
                return None
            made.factors[name] = dim
        return made if writable(made) else None

    def __str__(self) -> str:
        pairs = zip(self.mesh.axes, self.choices, strict=True)
        return "; ".join(f"{axis}={axis.size}: {choice}" for axis, choice in pairs)


def _split(size: int, axes: tuple[Axis, ...], packed: bool) -> DimLayout | None:
    """A split with no empty shard, or None."""
    blocks = (size // 3, size - size // 3) if packed and size > 2 else (size,)
    if packed and len(blocks) < 2:
        return None
    dim = DimLayout.shard(size, axes, blocks) if size else DimLayout.whole(0)
    return dim if size and all_shards_nonempty(dim) else None


def choices_of(rule: Rule) -> list[Choice]:
    """What an axis may do with a call: every factor that need not stay whole, every linear set."""
    groups: dict[tuple[str, ...], None] = {}
    for name, _ in rule.sizes:
        group = next((link for link in rule.linked if name in link), (name,))
        group = tuple(dict.fromkeys(group))
        if not rule.whole.intersection(group):
            groups[group] = None
    return [Choice(group) for group in groups] + [Choice(linear=which) for which in rule.linear]


def assignments(rule: Rule) -> Iterator[Assignment]:
    """Every legal assignment: one axis of 2, of 3, of 2 on packed dims, and two axes of 2 and 3."""
    choices = choices_of(rule)
    for size in (2, 3):
        for choice in choices:
            yield Assignment(Mesh((Axis("a", size),)), (choice,))
    tied = {name for pair in rule.tied for name in pair}
    for choice in choices:
        if choice.factors and not tied.intersection(choice.factors):
            yield Assignment(Mesh((Axis("a", 2),)), (Choice(choice.factors, packed=True),))
    mesh = Mesh((Axis("a", 2), Axis("b", 3)))
    for pair in itertools.product(choices, repeat=2):
        yield Assignment(mesh, pair)
