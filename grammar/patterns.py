"""Patterns over dotted names, and the nearest names for a message.

`*` stands for any text within one name part (which is never empty as a whole), `**` for any
across parts, `{a,b}` for one of several, `{0..7}` for a number of an inclusive range; `\\` takes
the next character as it is.
`**.` also stands for nothing, so `"**.weight"` matches `weight`.

>>> compile_pattern("layers.{0..2}.{q,k}_proj").matches("layers.1.k_proj")
True
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_MOST_ALTERNATIVES = 10_000
_DEEPEST = 16
_MOST_STARS = 8
_LONGEST_WORD = 200
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


class PatternError(ValueError):
    """A text that is not a pattern; `offset` is the place of the fault in it."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern; two are equal when their texts are."""

    text: str
    literal: str | None = field(compare=False)
    _regex: re.Pattern[str] = field(compare=False, repr=False)

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the whole name."""
        return self._regex.fullmatch(name) is not None

    def select(self, names: Iterable[str]) -> list[str]:
        """The names that the pattern matches, in their order."""
        return [name for name in names if self._regex.fullmatch(name)]

    def __str__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=4096)
def compile_pattern(text: str) -> Pattern:
    """Compile a pattern.

    Raises:
        PatternError: braces do not pair, a range runs backwards, or the pattern is too large.
    """
    reader = _Reader(text)
    regex = reader.read(0)
    if reader.at < len(text):
        raise PatternError("`}` closes nothing", reader.at)
    literal = re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) if reader.plain else None
    return Pattern(text, literal, re.compile(regex, re.DOTALL))


def literal_pattern(name: str) -> Pattern:
    """The pattern that matches one name only."""
    return compile_pattern(re.sub(r"([\\*{},])", r"\\\1", name))


class _Reader:
    """Recursive descent from pattern to regular expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.plain = True
        self.alternatives = 0
        self.stars = 0

    def read(self, depth: int) -> str:
        """Read up to the end, or up to `,` or `}` within braces."""
        parts: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "}" or (char == "," and depth):
                break
            parts.append(self._shard(char, depth))
        return "".join(parts)

    def _shard(self, char: str, depth: int) -> str:
        if char == "\\":
            return self._escape()
        if char == "*":
            return self._star()
        if char == "{":
            return self._braces(depth + 1)
        self.at += 1
        return re.escape(char)

    def _escape(self) -> str:
        if self.at + 1 == len(self.text):
            raise PatternError("`\\` escapes nothing", self.at)
        self.at += 2
        return re.escape(self.text[self.at - 1])

    def _star(self) -> str:
        self.plain = False
        start = self.at
        while self.text[self.at : self.at + 1] == "*":
            self.at += 1
        self.stars += 1
        if self.stars > _MOST_STARS:
            raise PatternError(f"more than {_MOST_STARS} wildcards", start)
        begins_part = start == 0 or self.text[start - 1] in ".{,"
        if self.at - start == 1:
            ends_part = self.at == len(self.text) or self.text[self.at] in ".},"
            return "[^.]+" if begins_part and ends_part else "[^.]*"
        if begins_part and self.text[self.at : self.at + 1] == ".":
            self.at += 1
            return r"(?:.*\.)?"
        return ".*"

    def _braces(self, depth: int) -> str:
        self.plain = False
        start = self.at
        if depth > _DEEPEST:
            raise PatternError(f"braces nest more than {_DEEPEST} deep", start)
        numbers = _RANGE.match(self.text, start + 1)
        if numbers and self.text[numbers.end() : numbers.end() + 1] == "}":
            self.at = numbers.end() + 1
            return self._range(int(numbers[1]), int(numbers[2]), start)
        return self._choice(depth, start)

    def _range(self, first: int, last: int, start: int) -> str:
        if first > last:
            raise PatternError(f"the range {first}..{last} runs backwards", start)
        self._count(last - first + 1, start)
        return f"(?:{'|'.join(str(number) for number in range(first, last + 1))})"

    def _choice(self, depth: int, start: int) -> str:
        choices: list[str] = []
        while True:
            self.at += 1
            choices.append(self.read(depth))
            self._count(1, start)
            if self.at == len(self.text):
                raise PatternError("`{` is never closed", start)
            if self.text[self.at] == "}":
                break
        self.at += 1
        if choices == [""]:
            raise PatternError("`{}` holds nothing", start)
        return f"(?:{'|'.join(dict.fromkeys(choices))})"

    def _count(self, more: int, start: int) -> None:
        self.alternatives += more
        if self.alternatives > _MOST_ALTERNATIVES:
            raise PatternError(f"more than {_MOST_ALTERNATIVES} alternatives", start)


def nearest(word: str, names: Iterable[str], count: int = 1) -> list[str]:
    """The names most like a word, the best first; empty where none is close.

    Words of no sensible length are like none: comparing two takes the product of their lengths.
    """
    if len(word) > _LONGEST_WORD:
        return []
    compared = sorted(name for name in set(names) if len(name) <= _LONGEST_WORD)
    return difflib.get_close_matches(word, compared, n=count, cutoff=0.6)


def nearest_to_pattern(pattern: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that a pattern which matches nothing may have meant.

    Where the pattern begins with `**.`, as many last parts of a name are compared as the rest of
    the pattern has; one name is returned for each such ending.
    """
    tail = pattern
    floating = False
    while tail.startswith("**."):
        tail, floating = tail[3:], True
    parts = tail.count(".") + 1
    endings: dict[str, str] = {}
    for name in names:
        ending = ".".join(name.split(".")[-parts:]) if floating else re.sub(r"\d+", "0", name)
        endings.setdefault(ending, name)
    if not floating:
        tail = re.sub(r"\d+", "0", tail.replace("*", "0"))
    if len(tail) > _LONGEST_WORD:
        return []
    close = difflib.get_close_matches(tail, list(endings), n=count, cutoff=0.5)
    return [endings[ending] for ending in close]
