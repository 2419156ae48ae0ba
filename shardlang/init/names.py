"""Parameter names as patterns: one for all layers, and one for several names that differ little."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from shardlang.grammar.patterns import compile_pattern

_SPECIAL = re.compile(r"([\\*{},])")


def generic(name: str) -> str:
    """The name with every number between dots as `*`: the same for all layers."""
    return ".".join("*" if part.isdecimal() else _escaped(part) for part in name.split("."))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def patterns_for(wanted: Sequence[str], others: Iterable[str]) -> list[str]:
    """A few patterns that match all wanted names and none of the others."""
    forbidden = set(others) - set(wanted)
    groups: dict[str, list[str]] = {}
    for name in wanted:
        groups.setdefault(generic(name), []).append(name)
    tight = [t for text, names in groups.items() for t in _tight(text, names, forbidden)]
    return _merged(tight, forbidden)


def _tight(text: str, names: list[str], forbidden: set[str]) -> list[str]:
    """A pattern that matches these names alone, with ranges instead of `*` where it must."""
    if _clear(text, forbidden):
        return [text]
    parts = text.split(".")
    columns = list(zip(*(name.split(".") for name in names), strict=True))
    ranged = ".".join(
        _numbers({int(n) for n in column}) if part == "*" else part
        for part, column in zip(parts, columns, strict=True)
    )
    if _clear(ranged, forbidden):
        return [ranged]
    return [_escaped(name) for name in names]


def _clear(text: str, forbidden: set[str]) -> bool:
    return not compile_pattern(text).select(forbidden)


def _numbers(found: set[int]) -> str:
    """`3`, `{0..7}` or `{0,2,5}`."""
    low, high = min(found), max(found)
    if low == high:
        return str(low)
    if len(found) == high - low + 1:
        return f"{{{low}..{high}}}"
    return f"{{{','.join(str(n) for n in sorted(found))}}}"


def _merged(texts: list[str], forbidden: set[str]) -> list[str]:
    """Patterns that differ in one part, joined: `q_proj` and `k_proj` as `{q,k}_proj`."""
    for place in (-2, -1):
        groups: dict[tuple[str, ...], list[str]] = {}
        for text in texts:
            parts = text.split(".")
            key = (*parts[:place], "\0", *parts[len(parts) + place + 1 :])
            groups.setdefault(key if len(parts) >= -place else (text,), []).append(text)
        texts = [t for key, members in groups.items() for t in _joined(key, members, forbidden)]
    return texts


def _joined(key: tuple[str, ...], members: list[str], forbidden: set[str]) -> list[str]:
    if len(members) == 1 or "\0" not in key:
        return members
    at = key.index("\0")
    choices = [member.split(".")[at] for member in members]
    if any(set(choice) & set("{},*\\") for choice in choices):
        return members
    joined = ".".join((*key[:at], _alternatives(choices), *key[at + 1 :]))
    return [joined] if _clear(joined, forbidden) else members


def _alternatives(words: Sequence[str]) -> str:
    """`{q,k,v}_proj` for `q_proj`, `k_proj` and `v_proj`."""
    head = _shared(words)
    head = head[: head.rfind("_") + 1]
    rest = [word[len(head) :] for word in words]
    tail = _shared([word[::-1] for word in rest])[::-1]
    tail = tail[tail.find("_") :] if "_" in tail else ""
    middle = [word[: len(word) - len(tail)] for word in rest]
    if not all(middle):
        return f"{{{','.join(words)}}}"
    return f"{head}{{{','.join(middle)}}}{tail}"


def _shared(words: Sequence[str]) -> str:
    """The letters that all words begin with."""
    columns = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*words, strict=False))
    return "".join(letters[0] for letters in columns)
