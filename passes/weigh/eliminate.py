"""The cheapest choice of one option for each of many variables: variable elimination.

Prices stand in tables, each over a few variables. A variable is eliminated by adding up the tables
that know it and keeping, for every choice of its neighbours, its best option (Bertelè and Brioschi,
Nonserial Dynamic Programming, 1972). That is exact. It takes time linear in the number of variables
where the neighbours of each are few, as they are in the chains of a model; a variable that would
make a table larger than `LIMIT` keeps its first option instead.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LIMIT = 1 << 18
"""The most entries of a table."""

NEVER = 1 << 58
"""The price of what cannot be: above every sum of real prices, and far from an overflow."""


@dataclass(frozen=True, slots=True)
class Table:
    """Prices of the joint choice of some variables.

    Attributes:
        over: the variables, one for each dim.
        prices: int64, one dim for each variable, as large as it has options.
    """

    over: tuple[int, ...]
    prices: Tensor


@dataclass(slots=True)
class Elimination:
    """The state of one elimination.

    Attributes:
        sizes: how many options each variable has.
        known: the tables that each open variable stands in, by their numbers.
        made: how many tables there have been: the number of the next one.
        best: for each eliminated variable its neighbours, and its best option for their choices.
    """

    sizes: Sequence[int]
    tables: dict[int, Table]
    known: list[set[int]]
    made: int
    best: list[tuple[int, tuple[int, ...], Tensor]] = field(default_factory=list)

    def run(self) -> list[int]:
        """Eliminate all variables, and read their options off in the opposite order."""
        queue = [(self._entries(variable), variable) for variable in range(len(self.sizes))]
        heapq.heapify(queue)
        done: set[int] = set()
        while queue:
            entries, variable = heapq.heappop(queue)
            if variable in done or entries != self._entries(variable):
                continue
            done.add(variable)
            around = self._around(variable)
            if entries > LIMIT:
                self._fix(variable)
            else:
                self._eliminate(variable)
            for other in around:
                heapq.heappush(queue, (self._entries(other), other))
        chosen = [0] * len(self.sizes)
        for variable, around, best in reversed(self.best):
            chosen[variable] = int(best[tuple(chosen[other] for other in around)])
        return chosen

    def _entries(self, variable: int) -> int:
        """How many entries the table has that its elimination makes."""
        return math.prod(self.sizes[v] for v in {variable, *self._around(variable)})

    def _around(self, variable: int) -> tuple[int, ...]:
        """The other variables of its tables."""
        found = {v for number in self.known[variable] for v in self.tables[number].over}
        return tuple(sorted(found - {variable}))

    def _taken(self, variable: int) -> list[Table]:
        """Its tables, which no longer stand anywhere."""
        numbers = sorted(self.known[variable])
        for number in numbers:
            for other in self.tables[number].over:
                self.known[other].discard(number)
        return [self.tables.pop(number) for number in numbers]

    def _eliminate(self, variable: int) -> None:
        around = self._around(variable)
        total = joined(self._taken(variable), (*around, variable), self.sizes)
        prices, best = total.min(dim=-1)
        self.best.append((variable, around, best))
        self._add(Table(around, prices))

    def _fix(self, variable: int) -> None:
        """Let a variable keep its first option."""
        self.best.append((variable, (), torch.zeros((), dtype=torch.int64)))
        for table in self._taken(variable):
            place = table.over.index(variable)
            rest = (*table.over[:place], *table.over[place + 1 :])
            self._add(Table(rest, table.prices.select(place, 0)))

    def _add(self, table: Table) -> None:
        if not table.over:
            return
        number = self.made
        self.made += 1
        self.tables[number] = table
        for variable in table.over:
            self.known[variable].add(number)


def cheapest(sizes: Sequence[int], tables: Sequence[Table]) -> list[int]:
    """The option of each variable at which the prices of all tables add up to the least.

    Of equal choices that with the earlier options, as far as the variables are eliminated one by
    one; the same input always has the same answer.

    Args:
        sizes: how many options each variable has.
        tables: the prices, at most `NEVER` each.
    """
    known: list[set[int]] = [set() for _ in sizes]
    for number, table in enumerate(tables):
        for variable in table.over:
            known[variable].add(number)
    return Elimination(sizes, dict(enumerate(tables)), known, len(tables)).run()


def joined(tables: Sequence[Table], over: tuple[int, ...], sizes: Sequence[int]) -> Tensor:
    """The sum of tables, over all their variables in a given order; at most `NEVER` an entry."""
    total = torch.zeros([sizes[v] for v in over], dtype=torch.int64)
    for table in tables:
        order = sorted(range(len(table.over)), key=lambda i: over.index(table.over[i]))
        shape = [sizes[v] if v in table.over else 1 for v in over]
        total = (total + table.prices.permute(order).reshape(shape)).clamp(max=NEVER)
    return total


def total_of(chosen: Sequence[int], tables: Sequence[Table]) -> int:
    """The price of a choice: the sum over all tables, at most `NEVER`."""
    found = (int(table.prices[tuple(chosen[v] for v in table.over)]) for table in tables)
    return min(sum(found), NEVER)
