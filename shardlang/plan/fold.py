"""Rows that differ only in the numbers of their names, as one: `layers.{0..31}.mlp`."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

_NUMBER = re.compile(r"\d+")
_QUOTED = re.compile(r"`[^`]*`")


def skeleton(name: str) -> str:
    """A name with its numbers taken out.

    >>> skeleton("layers.12.fc1.weight")
    'layers.#.fc#.weight'
    """
    return _NUMBER.sub("#", name)


def skeleton_of_sentence(text: str) -> str:
    """A sentence with the numbers taken out of the names between backticks."""
    return _QUOTED.sub(lambda found: skeleton(found[0]), text)


def join_names(names: Sequence[str]) -> str:
    """One pattern for names of one skeleton; a number that varies freely becomes `*`.

    >>> join_names(["layers.0.fc1", "layers.1.fc1", "layers.2.fc1"])
    'layers.{0..2}.fc1'
    """
    columns = list(zip(*(_NUMBER.findall(name) for name in names), strict=True))
    shown = iter([_range(column) for column in columns])
    return _NUMBER.sub(lambda _: next(shown), names[0])


def join_sentences(texts: Sequence[str]) -> str:
    """One sentence for sentences of one skeleton."""
    quoted = zip(*(_QUOTED.findall(text) for text in texts), strict=True)
    shown = iter([join_names(names) for names in quoted])
    return _QUOTED.sub(lambda _: next(shown), texts[0])


def _range(numbers: Sequence[str]) -> str:
    values = sorted({int(number) for number in numbers})
    if len(values) == 1:
        return numbers[0]
    if values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}" if len(values) < 4 else "*"


def fold(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Groups of one key, in the order of their first items."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def split_prefix(pattern: str) -> tuple[str, str]:
    """What stands before and after the last part that varies.

    >>> split_prefix("model.layers.{0..3}.mlp.up.weight")
    ('model.layers.{0..3}', 'mlp.up.weight')
    """
    parts = re.split(r"\.(?![^{]*\})", pattern)
    places = [i for i, part in enumerate(parts) if re.search(r"\{|\*", part)]
    if not places or places[-1] == len(parts) - 1:
        return "", pattern
    cut = places[-1] + 1
    return ".".join(parts[:cut]), ".".join(parts[cut:])
