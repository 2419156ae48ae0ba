"""The table of invariants in docs/passes.md is that of the passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.normalize.normalize import NORMALIZE, TRACED
from shardlang.passes.pipeline import BASE, PIPELINE, Pass

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"


CASES = [(NORMALIZE, TRACED), (PIPELINE, BASE)]


def table(passes: tuple[Pass, ...], base: tuple[Invariant, ...]) -> str:
    """Invariant, what it says, the pass that establishes it, and the one that retires it."""
    made = {one: "the beginning" for one in base}
    made |= {one: each.name for each in passes for one in each.establishes}
    gone = {one: each.name for each in passes for one in each.retires}
    rows = [
        f"| `{one.name}` | {first_line(one.check.__doc__)} | {by} | {gone.get(one, '')} |"
        for one, by in made.items()
    ]
    head = "| invariant | what holds | established by | retired by |\n|---|---|---|---|"
    return "\n".join([head, *rows]) + "\n"


def first_line(text: str | None) -> str:
    assert text is not None
    return text.strip().split("\n\n")[0].replace("\n    ", " ")


@pytest.mark.parametrize(("passes", "base"), CASES)
def test_the_page_lists_every_invariant(
    passes: tuple[Pass, ...], base: tuple[Invariant, ...]
) -> None:
    assert table(passes, base) in PAGE.read_text()


@pytest.mark.parametrize(("passes", "base"), CASES)
def test_nothing_is_retired_that_was_not_established(
    passes: tuple[Pass, ...], base: tuple[Invariant, ...]
) -> None:
    holding = set(base)
    for one in passes:
        assert holding.issuperset(one.retires), one.name
        holding = (holding - set(one.retires)) | set(one.establishes)
