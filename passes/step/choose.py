"""The choices of what is computed again: what is cheap, or what a budget of bytes takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from shardlang.ir.node import info
from shardlang.ir.step import StepProgram
from shardlang.passes.step.cheap import is_cheap
from shardlang.passes.step.cut import Choice, Cut
from shardlang.passes.step.hull import hull, packed, parts_of
from shardlang.passes.step.prices import Prices
from shardlang.passes.step.regather import gathered_again
from shardlang.passes.step.regions import inside_modules, repeatable
from shardlang.passes.step.segments import Crossing


@dataclass(slots=True)
class Choosing:
    """One step, of which something is to be computed again.

    Attributes:
        inside: what modules compute that are computed again in any case.
        gathered: parameters that are gathered again in any case.
        base: the bytes of leaves and results.
    """

    program: StepProgram
    prices: Prices
    inside: set[fx.Node]
    gathered: set[fx.Node]
    base: int = field(init=False)
    crossing: Crossing = field(init=False)

    def __post_init__(self) -> None:
        self.base = sum(self.prices.replay.storages[n].bytes for n in self.prices.free)
        self.prices.keep(self.gathered)
        self.crossing = Crossing(self.forward, self.prices)

    @staticmethod
    def of(program: StepProgram, modules: Collection[str]) -> Choosing:
        """The choices of a step."""
        inside = inside_modules(program, modules) if modules else set()
        return Choosing(program, Prices.of(program), inside, gathered_again(program.graph))

    @property
    def forward(self) -> list[fx.Node]:
        """The calls of the forward, in order."""
        nodes = self.program.graph.nodes
        return [n for n in nodes if n.op == "call_function" and not info(n).backward]

    def cut(self, may: Iterable[fx.Node], places: Sequence[int] = ()) -> Cut:
        """The choices among some values beside those that are computed again in any case.

        Args:
            places: those between which the forward is computed again by itself.
        """
        left = self.inside | self.gathered | self.crossing.crossing(places)
        free = {n for n in may if n not in left}
        prices = Prices(self.prices.replay, set(self.prices.free))
        prices.keep([*self._read_anyway(free)])
        return Cut(prices, self.prices.free, self.forward, free, self.inside)

    def _read_anyway(self, may: Collection[fx.Node]) -> Iterator[fx.Node]:
        """What the backward reads and may not be computed again."""
        for node in self.forward:
            decided = node not in may and node not in self.inside
            if decided and any(info(user).backward for user in node.users):
                yield node


def cheap_again(program: StepProgram, modules: Collection[str]) -> Choice:
    """As few bytes as possible are kept, and nothing is computed again but what is cheap."""
    choosing = Choosing.of(program, modules)
    cheap = [n for n in repeatable(program) if is_cheap(n)]
    return choosing.cut(cheap, choosing.crossing.best()).fewest_bytes()


TRIES = 6
"""How often the bytes that may be kept between two choices are halved."""

Peak = Callable[[Collection[fx.Node]], int]
"""The peak of live bytes of the step that computes some values again."""


class NotReached(Exception):
    """A budget that no choice reaches; the least peak is `least` bytes."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


def fitting(
    program: StepProgram,
    modules: Collection[str],
    budget: int,
    peak: Peak,
    kept: Callable[[Choice], int] | None = None,
) -> Choice:
    """The choice with the least work whose peak is within a budget.

    Args:
        kept: what a choice takes at the least, in bytes; if not given, the leaves and results
            count, and what the choice keeps.

    Raises:
        NotReached: there is none.
    """
    choosing = Choosing.of(program, modules)
    may = repeatable(program)
    found = _Search(budget, peak, kept or (lambda choice: choice.bytes + choosing.base))
    first = choosing.cut(may).choice(())
    if found.fits(first):
        return first
    hulls: list[list[Choice]] = []
    for places in choosing.crossing.ways():
        cut = choosing.cut(may, places)
        hulls.append(hull(cut, math.inf if found.best is None else found.best.work))
        found.among(cut, hulls[-1])
    if found.best is None:
        raise NotReached(min(found.reached(one) for choices in hulls for one in _some(choices)))
    return found.best


def _some(choices: Sequence[Choice]) -> Sequence[Choice]:
    """The last of some choices, and a few before it."""
    return choices[:: -max(1, len(choices) // 3)]


@dataclass(slots=True)
class _Search:
    """The cheapest choice so far that fits.

    Attributes:
        kept: what a choice takes at the least, in bytes.
    """

    budget: int
    peak: Peak
    kept: Callable[[Choice], int]
    best: Choice | None = None
    _known: dict[frozenset[fx.Node], int] = field(default_factory=dict)

    def fits(self, choice: Choice) -> bool:
        """Whether a choice fits; it is the best one then if it takes less work."""
        fits = self.kept(choice) <= self.budget and self.reached(choice) <= self.budget
        if fits and self._is_cheaper(choice):
            self.best = choice
        return fits

    def reached(self, choice: Choice) -> int:
        """The peak of a choice, in bytes."""
        if choice.again not in self._known:
            self._known[choice.again] = self.peak(choice.again)
        return self._known[choice.again]

    def among(self, cut: Cut, choices: Sequence[Choice]) -> None:
        """Look among choices in the order of their work, the later the fewer bytes."""
        choices = [one for one in choices if self._is_cheaper(one)]
        found = next((one for one in _some(choices) if self.fits(one)), None)
        if found is None:
            return
        place = self._first(choices[: choices.index(found) + 1])
        if place:
            self._between(cut, choices, place)

    def _between(self, cut: Cut, choices: Sequence[Choice], place: int) -> None:
        """Look for the most bytes below those of a choice that does not fit which do."""
        parts = parts_of(cut, choices)
        low, high = choices[place].bytes, choices[place - 1].bytes
        for _ in range(TRIES):
            middle = (low + high) // 2
            made = packed(cut, choices[0], parts, middle)
            if made is not None and self.fits(made):
                low = middle
            else:
                high = middle

    def _is_cheaper(self, choice: Choice) -> bool:
        return self.best is None or choice.work < self.best.work

    def _first(self, choices: Sequence[Choice]) -> int:
        """The first that fits, if those that do are the last ones."""
        low, high = 0, len(choices)
        while low < high:
            middle = (low + high) // 2
            if self.fits(choices[middle]):
                high = middle
            else:
                low = middle + 1
        return low if low < len(choices) else 0
