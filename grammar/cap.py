"""Findings in a number and a length that can be read, whatever the text that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shardlang.grammar.diagnostics import Diagnostic

MOST_FINDINGS = 100
"""How many findings are shown; the others are counted."""

_LONGEST_TEXT, _LONGEST_NOTE = 1000, 20_000
"""Characters; a note may hold a traceback."""


def most_important(findings: Sequence[Diagnostic]) -> tuple[list[Diagnostic], int]:
    """The findings to show, texts of a sensible length, and how many more there are.

    Of too many, errors come first.
    """
    shown = list(findings)
    if len(shown) > MOST_FINDINGS:
        shown = sorted(shown, key=lambda found: not found.is_error)[:MOST_FINDINGS]
    return [_short(found) for found in shown], len(findings) - len(shown)


def _short(found: Diagnostic) -> Diagnostic:
    labels = tuple(replace(label, text=_cut(label.text, _LONGEST_TEXT)) for label in found.labels)
    return replace(
        found,
        message=_cut(found.message, _LONGEST_TEXT),
        labels=labels,
        notes=tuple(_cut(note, _LONGEST_NOTE) for note in found.notes),
        help=None if found.help is None else _cut(found.help, _LONGEST_TEXT),
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
