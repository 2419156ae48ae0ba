"""The choice among chains that exclude each other, against trying all sets."""

from __future__ import annotations

import itertools
import random

import pytest

from shardlang.init.choose import WORTH, Kind, best


def kinds_at_random(seed: int) -> tuple[list[Kind], float]:
    """Kinds with gains of both signs, some of them rivals, and an amount to cover."""
    draw = random.Random(seed)
    kinds = [
        Kind([], float(draw.randrange(40)), float(draw.randrange(20)), draw.choice([0, 1, 5, 9]))
        for _ in range(draw.randrange(1, 10))
    ]
    for one, other in itertools.combinations(range(len(kinds)), 2):
        if draw.random() < 0.3:
            kinds[one].rivals.add(other)
            kinds[other].rivals.add(one)
    return kinds, draw.uniform(0.0, 1.2) * sum(kind.covers for kind in kinds)


def worth(kinds: list[Kind], chosen: tuple[int, ...], enough: float) -> tuple[float, float]:
    """Bytes covered as far as they count, and gain."""
    covers = sum(kinds[index].covers for index in chosen)
    return min(covers, enough), sum(kinds[index].gain for index in chosen)


@pytest.mark.parametrize("seed", range(60))
def test_no_set_is_worth_more(seed: int) -> None:
    kinds, enough = kinds_at_random(seed)
    found = tuple(best(kinds, enough))
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(kinds)), count) for count in range(len(kinds) + 1)
    )
    free = [s for s in sets if not any(kinds[i].rivals & set(s) for i in s)]
    assert found in free
    assert worth(kinds, found, enough) == max(worth(kinds, one, enough) for one in free)


def test_a_loss_is_taken_to_cover_enough_and_no_further() -> None:
    gain, loss, less = Kind([], 10.0, 0.0, 5), Kind([], 0.0, 3.0, 5), Kind([], 0.0, 2.0, 4)
    assert loss.gain == -3.0 * WORTH
    assert best([gain, loss, less], 5) == [0]
    assert best([gain, loss, less], 9) == [0, 2]
    assert best([gain, loss, less], 10) == [0, 1]
    assert best([gain, loss, less], 100) == [0, 1, 2]
