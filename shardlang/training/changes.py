"""What differs between the run that saved a checkpoint and the one that goes on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardlang.grammar import tree as t
from shardlang.grammar.formatter import format_node
from shardlang.grammar.parser import parse


@dataclass(frozen=True, slots=True)
class Change:
    """What a run states otherwise than before.

    Attributes:
        key: of what a run says of itself.
        words: what it was and what it is.
    """

    key: str
    words: str


def differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> tuple[list[Change], list[str]]:
    """What differs between two runs: what a resume refuses, and what it says."""
    refused = [_changed(key, before, now) for key in _SAME if before.get(key) != now.get(key)]
    said = [_changed(key, before, now) for key in _MAY_CHANGE if before.get(key) != now.get(key)]
    lines = [change.words for change in said]
    lines += _other_statements(str(before.get("spec", "")), str(now.get("spec", "")))
    same_text = all(before.get(key) == now.get(key) for key in ("spec", "set"))
    programs = [[one.get(key) for key in ("program", STAGES)] for one in (before, now)]
    if same_text and not refused and not said and programs[0] != programs[1]:
        where = _other_stages(before.get(STAGES), now.get(STAGES))
        lines = [f"the same spec gives another program{where}: {_WHY}"]
    return refused, lines


STAGES = "stages"
"""The fingerprints of a pipeline's stages, by number."""

GROUPS = "group"
"""The parameters of each group, by what the optimizer is given for them."""

_SAME = ("model", "optimizer", GROUPS, "precision")
_MAY_CHANGE = ("learning_rate", "mesh", "inputs", "random", "pipeline")
_PLACED = (t.Param, t.Buffer, t.ValueStatement, t.Output, t.Store, t.Accumulate, t.Recompute)
"""The statements of how tensors lie and a step is cut, which may change and are said."""

_MOST = 3
"""How many statements are named."""

_WHY = "the model's code or a library has changed"


def _other_stages(before: object, now: object) -> str:
    """In which stages two pipelines differ, in words."""
    if not (isinstance(before, Sequence) and isinstance(now, Sequence)) or len(before) != len(now):
        return ""
    found = [str(i) for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    return f" of stage{'s' * (len(found) > 1)} {', '.join(found)}" if found else ""


def _other_statements(before: str, now: str) -> list[str]:
    """The statements about layouts and the step that one text has alone.

    A spec whose file is gone has no text, and nothing is said of it.
    """
    if not before or not now:
        return []
    then, new = _placed(before), _placed(now)
    gone, added = [x for x in then if x not in new], [x for x in new if x not in then]
    parts = (("did not state", added), ("stated", gone))
    return [f"the run before {verb} {_named(found)}" for verb, found in parts if found]


def _placed(text: str) -> list[str]:
    tree, _ = parse(text)
    stated = tree.statements if tree is not None else ()
    return [format_node(one) for one in stated if isinstance(one, _PLACED)]


def _named(found: Sequence[str]) -> str:
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(f"`{line}`" for line in found[:_MOST]) + more


def _changed(key: str, before: Mapping[str, object], now: Mapping[str, object]) -> Change:
    then, new = before.get(key), now.get(key)
    if key == GROUPS and isinstance(new, Mapping) and isinstance(then, Mapping | None):
        return Change(key, _other_groups(_by_name(then or {}), _by_name(new)))
    return Change(key, f"`{key}` was {_shown(then)} and is {_shown(new)}")


def _by_name(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {name: arguments for arguments, names in groups.items() for name in names}


def _other_groups(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What the optimizer is given otherwise, of the first parameter and those like it."""
    others = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    first = others[0]
    then, new = before.get(first), now.get(first)
    alike = [name for name in others if (before.get(name), now.get(name)) == (then, new)]
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    words = "were in no group" if then is None else f"had `{then}`"
    after = "are in none" if new is None else f"have `{new}`"
    rest = f"; {len(others) - len(alike)} others differ too" if len(others) > len(alike) else ""
    return f"of `group`, `{first}`{more} {words} and {after}{rest}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {part}" for key, part in value.items()) or "empty"
    return "not stated" if value is None or value == "" else str(value)
