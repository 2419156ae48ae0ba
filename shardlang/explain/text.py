"""Explanations as text for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from shardlang.explain.types import Explanation, Link, Lost, Story
from shardlang.plan.text import bytes_text


def render(explanations: Sequence[Explanation], width: int = 80) -> str:
    """All explanations, one below the other."""
    return "\n\n".join("\n".join(_lines(one, width)) for one in explanations)


def _lines(one: Explanation, width: int) -> Iterator[str]:
    yield f"{one.kind} {one.subject}"
    for fact in one.facts:
        yield from _wrapped(fact, "  ", width)
    for story in one.stories:
        yield ""
        yield from _story(story, width)
    if one.collectives:
        yield ""
        yield "collectives that move it"
        for text in one.collectives:
            yield from _wrapped(text, "  ", width, "    ")


def _story(story: Story, width: int) -> Iterator[str]:
    yield from _wrapped(story.title, "", width, "  ")
    for link in story.links:
        yield from _link(link, width)
    for lost in story.lost:
        yield from _lost(lost, width)
    if story.alternatives:
        title = f"bytes moved, forward and backward, for each way to split {story.choice}"
        yield from _wrapped(title, "  ", width)
        size = max(len(bytes_text(way.bytes)) for way in story.alternatives)
        for way in story.alternatives:
            mark = "*" if way.chosen else " "
            head = f"    {mark} {bytes_text(way.bytes):>{size}}  "
            yield from _wrapped(way.text, head, width, " " * len(head))


def _link(link: Link, width: int) -> Iterator[str]:
    where = link.place or link.source
    text = f"{link.text} ({where})" if where else link.text
    yield from _wrapped(text, "  <- ", width, "     ")
    if link.line:
        yield from _wrapped(link.line, "       ", width)


def _lost(lost: Lost, width: int) -> Iterator[str]:
    text = f"{lost.text} ({lost.source})" if lost.source else lost.text
    yield from _wrapped(text, "  not taken: ", width, "     ")
    if lost.origin is not None:
        yield from _link(lost.origin, width)


def _wrapped(text: str, head: str, width: int, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=rest or head,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
