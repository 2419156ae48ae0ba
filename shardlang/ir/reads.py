"""Reads: which index of a dim every index of another dim reads.

A dim that is rolled, padded, cut, reversed or taken with a step reads another one, and so do the
windows of a convolution, one after the other. What is read stands in stretches, each a Python
range, or the number of indices that read nothing.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

Stretch = range | int
"""Indices that are read one after the other; or how many in a row read nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """Stretches of one form, of one or more indices each.

    Attributes:
        first: what the first index reads; None where nothing is read.
        count: how many indices a stretch has.
        step: from one index to the next.
        times: how many stretches there are, one after the other.
        shift: from the first index of a stretch to that of the next.
    """

    first: int | None
    count: int
    step: int = 1
    times: int = 1
    shift: int = 0

    def stretches(self) -> Iterator[Stretch]:
        """The stretches in their order."""
        for number in range(self.times):
            if self.first is None:
                yield self.count
            else:
                first = self.first + number * self.shift
                yield range(first, first + self.count * self.step, self.step)

    def __str__(self) -> str:
        if self.first is None:
            return f"none {self.count * self.times}"
        step = f":{self.step}" if self.step != 1 else ""
        again = f" * {self.times} + {self.shift}" if self.times > 1 else ""
        return f"{self.first}:{self.first + self.count * self.step}{step}{again}"


@dataclass(frozen=True, slots=True)
class Reads:
    """What the indices of a dim read of a dim of `size` indices.

    Attributes:
        fill: the value where nothing is read.
        back: whether gradients go the other way: what was read gets the sum over its readers.
    """

    size: int
    runs: tuple[Run, ...]
    fill: complex = 0.0
    back: bool = False

    @staticmethod
    def of(size: int, stretches: Iterable[Stretch], fill: complex = 0.0) -> Reads:
        """The reads with these stretches, in as few runs as they come in."""
        runs: list[Run] = []
        for run in map(_as_run, _joined(stretches)):
            merged = _again(runs[-1], run) if runs else None
            runs[-1:] = [merged] if merged is not None else [*runs[-1:], run]
        return Reads(size, tuple(runs), fill)

    @property
    def length(self) -> int:
        """How many indices read."""
        return sum(run.count * run.times for run in self.runs)

    @property
    def fits(self) -> bool:
        """Whether all that is read is there."""
        read = (each for run in self.runs for each in run.stretches() if isinstance(each, range))
        return all(min(each) >= 0 and max(each) < self.size for each in read)

    def between(self, start: int, count: int) -> Iterator[Stretch]:
        """What `count` indices read, from one on."""
        stretches, starts = _laid_out(self)
        for number in range(max(bisect_right(starts, start) - 1, 0), len(stretches)):
            begin, end = max(start - starts[number], 0), start + count - starts[number]
            if end <= 0:
                return
            one = stretches[number]
            part = one[begin:end] if isinstance(one, range) else min(one, end) - begin
            if _length(part) > 0:
                yield part

    def after(self, first: Reads) -> Reads | None:
        """What is read of what `first` reads in turn; None where they fill with two values."""
        filled = {reads.fill for reads in (self, first) if any(r.first is None for r in reads.runs)}
        if len(filled) > 1:
            return None
        stretches = (one for run in self.runs for one in run.stretches())
        return Reads.of(first.size, _through(stretches, first), *filled)

    def reversed(self) -> Reads:
        """The way that gradients take."""
        return replace(self, back=not self.back)

    @property
    def there(self) -> Reads:
        """The way that values take."""
        return replace(self, back=False)

    def __str__(self) -> str:
        runs = ", ".join(map(str, self.runs))
        filled = f" with {self.fill!r}" if self.fill else ""
        return f"reads({self.size}: {runs}{filled}{' back' * self.back})"

    __repr__ = __str__


def _through(stretches: Iterable[Stretch], first: Reads) -> Iterator[Stretch]:
    """What stretches read of what `first` reads."""
    for one in stretches:
        if isinstance(one, int):
            yield one
        elif one.step == 1:
            yield from first.between(one.start, len(one))
        elif one.step == -1:
            parts = list(first.between(one[-1], len(one)))
            yield from (part if isinstance(part, int) else part[::-1] for part in parts[::-1])
        else:
            for index in one:
                yield from first.between(index, 1)


def _length(stretch: Stretch) -> int:
    return stretch if isinstance(stretch, int) else len(stretch)


@functools.lru_cache(maxsize=1024)
def _laid_out(reads: Reads) -> tuple[list[Stretch], list[int]]:
    """All stretches, and where in the reading dim each begins."""
    stretches = [each for run in reads.runs for each in run.stretches()]
    return stretches, list(itertools.accumulate(map(_length, stretches), initial=0))[:-1]


def _joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The stretches, those that go on where the one before ends joined to it; none is empty."""
    found: list[Stretch] = []
    for one in stretches:
        if not _length(one):
            continue
        last = found[-1] if found else None
        if isinstance(one, int) and isinstance(last, int):
            found[-1] = last + one
        elif isinstance(one, range) and isinstance(last, range) and _goes_on(last, one):
            step = _step_to(last, one)
            found[-1] = range(last.start, one[-1] + step, step)
        else:
            found.append(one)
    return found


def _goes_on(last: range, one: range) -> bool:
    step = _step_to(last, one)
    alike = len(one) == 1 or one.step == step
    return step != 0 and alike and last[-1] + step == one.start


def _step_to(last: range, one: range) -> int:
    return last.step if len(last) > 1 else one.start - last.start


def _as_run(stretch: Stretch) -> Run:
    if isinstance(stretch, int):
        return Run(None, stretch)
    return Run(stretch.start, len(stretch), stretch.step if len(stretch) > 1 else 1)


def _again(run: Run, one: Run) -> Run | None:
    """A run with one more stretch; None where that is no further than those before were."""
    if run.first is None or one.first is None or (run.count, run.step) != (one.count, one.step):
        return None
    shift = one.first - run.first - run.shift * (run.times - 1)
    if shift < 0 or (run.times > 1 and shift != run.shift):
        return None
    return replace(run, times=run.times + 1, shift=shift)
