"""The timeline of a pipeline as SVG: a lane for each rank, a box for each action."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from shardlang.ir.pipeline.action import Action, Work
from shardlang.plan.schedule.lanes import Lanes, Spell
from shardlang.plan.text import count_text, seconds_text

_COLORS = {
    Work.FORWARD: ("#4e79a7", "forward"),
    Work.BACKWARD: ("#f28e2b", "backward"),
    Work.INPUT: ("#59a14f", "gradients of inputs"),
    Work.WEIGHT: ("#b07aa1", "gradients of weights"),
}
"""The colour of each kind of action, and what it is."""

_LATER = ("#ffffff", 0.45)
"""What lies over the boxes of each later stage of a rank, and how dense."""

_WIDTH, _LEFT, _RIGHT = 1200, 72, 1184
_TOP, _LANE, _GAP, _BETWEEN, _BOTTOM = 64, 26, 4, 48, 56
_LETTER = 6.2
"""Pixels of a letter of a label."""

_FONT = 'font-family="Helvetica, Arial, sans-serif"'


def timeline_svg(lanes: Sequence[Lanes], title: str) -> str:
    """The picture, readable at a width of 1200 pixels.

    Args:
        lanes: what was predicted and, below it, what was measured; each fills the width.
    """
    return "\n".join(_Picture(lanes, title).lines()) + "\n"


class _Picture:
    def __init__(self, lanes: Sequence[Lanes], title: str) -> None:
        self.lanes, self.title = lanes, title
        self.several = any(_stages(spells) > 1 for one in lanes for spells in one.ranks)
        self.height = _TOP + _BOTTOM - _BETWEEN + sum(map(self._height, lanes))

    def _height(self, one: Lanes) -> int:
        return len(one.ranks) * (_LANE + _GAP) + _BETWEEN + 20

    def lines(self) -> Iterator[str]:
        """The elements, from the back to the front."""
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {self.height}"'
            f' width="{_WIDTH}" height="{self.height}" {_FONT} font-size="11">'
        )
        yield f'<rect width="{_WIDTH}" height="{self.height}" fill="white"/>'
        yield _text(16, 24, self.title, size=15)
        top = _TOP
        for one in self.lanes:
            yield from self._group(one, top)
            top += self._height(one)
        yield from self._legend(self.height - 18)
        yield "</svg>"

    def _group(self, one: Lanes, top: float) -> Iterator[str]:
        """The lanes of all ranks, with what they are and the time below."""
        said = f"{one.title}: bubble {one.bubble:.1%} of the time in which ranks compute"
        yield _text(16, top - 8, said, size=12)
        for rank, spells in enumerate(one.ranks):
            y = top + rank * (_LANE + _GAP)
            yield _text(_LEFT - 10, y + _LANE / 2 + 4, f"rank {rank}", anchor="end")
            yield (
                f'<rect x="{_LEFT}" y="{y}" width="{_RIGHT - _LEFT}" height="{_LANE}"'
                ' fill="#f1f3f5"/>'
            )
            first = min(spell.action.stage for spell in spells)
            for spell in spells:
                yield from self._box(spell, y, (_RIGHT - _LEFT) / one.length, first)
        bottom = top + len(one.ranks) * (_LANE + _GAP) + 12
        for part in range(5):
            x = _LEFT + (_RIGHT - _LEFT) * part / 4
            anchor = ("start", "middle", "middle", "middle", "end")[part]
            yield _text(x, bottom, _time(one.length * part / 4, one.unit), anchor, 10)

    def _box(self, spell: Spell, y: float, scale: float, first: int) -> Iterator[str]:
        """An action; lighter where it is of a later stage of its rank."""
        x, width = _LEFT + spell.begin * scale, (spell.end - spell.begin) * scale
        color, what = _COLORS[spell.action.work]
        action = spell.action
        said = f"{action}: {what} of microbatch {action.microbatch} in stage {action.stage}"
        place = f'x="{x:.2f}" y="{y}" width="{max(width, 0.5):.2f}" height="{_LANE}"'
        yield f'<rect {place} fill="{color}" stroke="white" stroke-width="0.6">'
        yield f"<title>{said}</title></rect>"
        later = spell.action.stage != first
        if later:
            yield f'<rect {place} fill="{_LATER[0]}" fill-opacity="{_LATER[1]}"/>'
        name = self._fitting(action, width)
        if name:
            ink = "#212529" if later else "#fff"
            yield _text(x + width / 2, y + _LANE / 2 + 4, name, "middle", 11, ink)

    def _fitting(self, action: Action, width: float) -> str:
        """The stage and the number of the microbatch, as far as there is room."""
        names = [f"{action.stage}:{action.microbatch}"] if self.several else []
        names.append(str(action.microbatch))
        return next((name for name in names if len(name) * _LETTER + 2 <= width), "")

    def _legend(self, y: float) -> Iterator[str]:
        works = {spell.action.work for one in self.lanes for spell in one}
        x: float = _LEFT
        for work, (color, what) in _COLORS.items():
            if work in works:
                yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}"/>'
                yield _text(x + 17, y, what)
                x += 40 + len(what) * _LETTER
        said = "stage:microbatch; later stages of a rank are lighter"
        yield _text(x, y, said if self.several else "the number is that of the microbatch")


def _stages(spells: Sequence[Spell]) -> int:
    return len({spell.action.stage for spell in spells})


def _time(value: float, unit: str) -> str:
    if not value:
        return "0"
    return seconds_text(value) if unit == "s" else f"{count_text(round(value))} {unit}"


def _text(
    x: float, y: float, said: str, anchor: str = "start", size: int = 11, color: str = "#212529"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}"'
    return f"<text {place}>{html.escape(said)}</text>"
