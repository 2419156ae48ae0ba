"""The table of invariants in docs/passes.md is that of the passes."""

from __future__ import annotations

from pathlib import Path

from shardlang.passes.pipeline import BASE, PIPELINE

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"


def table() -> str:
    """Invariant, what it says, the pass that establishes it, and the one that retires it."""
    made = {one: "the beginning" for one in BASE}
    made |= {one: each.name for each in PIPELINE for one in each.establishes}
    gone = {one: each.name for each in PIPELINE for one in each.retires}
    rows = [
        f"| `{one.name}` | {first_line(one.check.__doc__)} | {by} | {gone.get(one, '')} |"
        for one, by in made.items()
    ]
    head = "| invariant | what holds | established by | retired by |\n|---|---|---|---|"
    return "\n".join([head, *rows]) + "\n"


def first_line(text: str | None) -> str:
    assert text is not None
    return text.strip().split("\n\n")[0].replace("\n    ", " ")


def test_the_page_lists_every_invariant() -> None:
    assert table() in PAGE.read_text()


def test_nothing_is_retired_that_was_not_established() -> None:
    holding = set(BASE)
    for one in PIPELINE:
        assert holding.issuperset(one.retires), one.name
        holding = (holding - set(one.retires)) | set(one.establishes)
