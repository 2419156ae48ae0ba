"""Common factors of two shapes that hold the same elements: the arithmetic behind view rules.

`(4, 6) -> (2, 12)` is `(a b) c -> a (b c)` with sizes 2, 2, 6. Factors are found from the major end
and then from the minor end, each time the greatest common divisor of the two dims in hand; what is
left between (`3 4 -> 2 6` has nothing in common at the major end) is whole on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shardlang.rules.writing import arrow, group


@dataclass(slots=True)
class _Dim:
    """A dim being refined: what is left of it, and the factors found at either end."""

    rest: int
    major: list[str] = field(default_factory=list)
    minor: list[str] = field(default_factory=list)

    def text(self) -> str:
        return group([*self.major, *self.minor])


@dataclass(slots=True)
class _Refiner:
    left: list[_Dim]
    right: list[_Dim]
    count: int = 0

    def name(self, size: int, mark: str = "") -> str:
        self.count += 1
        return f"f{self.count - 1}={size}{mark}"

    def run(self) -> None:
        """Refine group by group: within a group the products of both sides agree."""
        left = [dim for dim in self.left if dim.rest != 1]
        right = [dim for dim in self.right if dim.rest != 1]
        while left and right:
            a, b = _group(left, right)
            self.common(left[:a], right[:b])
            left, right = left[a:], right[b:]

    def common(self, left: list[_Dim], right: list[_Dim]) -> None:
        self.sweep(left, right, from_major=True)
        self.sweep(left[::-1], right[::-1], from_major=False)
        for dim in (*left, *right):
            if dim.rest > 1:
                dim.major.append(self.name(dim.rest, "!"))

    def sweep(self, left: list[_Dim], right: list[_Dim], from_major: bool) -> None:
        a, b = iter(left), iter(right)
        one, two = _next(a), _next(b)
        while one is not None and two is not None:
            size = math.gcd(one.rest, two.rest)
            if size == 1:
                return
            name = self.name(size)
            for dim in (one, two):
                dim.rest //= size
                if from_major:
                    dim.major.append(name)
                else:
                    dim.minor.insert(0, name)
            one = one if one.rest > 1 else _next(a)
            two = two if two.rest > 1 else _next(b)


def _next(dims: Iterator[_Dim]) -> _Dim | None:
    return next((dim for dim in dims if dim.rest > 1), None)


def _group(left: list[_Dim], right: list[_Dim]) -> tuple[int, int]:
    """How many dims of each side make up the first group of equal products."""
    a = b = 1
    one, two = left[0].rest, right[0].rest
    while one != two:
        if one < two:
            one *= left[a].rest
            a += 1
        else:
            two *= right[b].rest
            b += 1
    return a, b


def reshape_spec(before: Sequence[int], after: Sequence[int]) -> str:
    """The rule string of a reshape."""
    if 0 in before:
        source = [f"a{i}={size}!" for i, size in enumerate(before)]
        return arrow([source], [[f"b{i}={size}!" for i, size in enumerate(after)]])
    refiner = _Refiner([_Dim(size) for size in before], [_Dim(size) for size in after])
    refiner.run()
    return arrow([[dim.text() for dim in refiner.left]], [[dim.text() for dim in refiner.right]])
