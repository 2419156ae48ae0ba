"""The memory of a step as a picture: live bytes over its statements, by kind, as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from shardlang.cost.composition import Kind
from shardlang.plan.module_ticks import ticks_of
from shardlang.plan.moments import Memory, Moment, Phase
from shardlang.plan.render_memory import place_of
from shardlang.plan.text import bytes_text

_COLORS = {
    Kind.PARAMETERS: "#4e79a7",
    Kind.BUFFERS: "#9c755f",
    Kind.OPTIMIZER: "#a0cbe8",
    Kind.GRADIENTS: "#f28e2b",
    Kind.INPUTS: "#bab0ac",
    Kind.OUTPUTS: "#79706e",
    Kind.GATHERED: "#59a14f",
    Kind.SAVED: "#edc948",
    Kind.COMMUNICATION: "#e15759",
    Kind.TEMPORARIES: "#b07aa1",
}
"""The kinds from the bottom to the top: what stays lies below what comes and goes."""

_WIDTH, _HEIGHT = 1000, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 748, 56, 380
"""The edges of the plot, in pixels; the names of modules stand below it, the kinds beside it."""

_LEVELS = 5
"""Lines across the plot."""

_FONT = 'font-family="Helvetica, Arial, sans-serif"'


def memory_svg(memory: Memory, title: str) -> str:
    """The picture, readable at a width of 1000 pixels."""
    return "\n".join(_Picture(memory, title).lines()) + "\n"


class _Picture:
    def __init__(self, memory: Memory, title: str) -> None:
        self.memory, self.title, self.peak = memory, title, memory.peak
        self.columns = list(_columns(memory.moments, _RIGHT - _LEFT))
        self.step = (_RIGHT - _LEFT) / len(self.columns)
        self.unit = _unit(self.peak.bytes / _LEVELS)

    def lines(self) -> Iterator[str]:
        """The elements, from the back to the front."""
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
            f' width="{_WIDTH}" height="{_HEIGHT}" {_FONT} font-size="12">'
        )
        yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
        yield _text(_LEFT, 22, self.title, size=15)
        yield from self._levels()
        yield from self._areas()
        yield from self._phases()
        yield from self._modules()
        yield from self._peak()
        yield from self._legend()
        yield "</svg>"

    def _x(self, column: float) -> float:
        return _LEFT + column * self.step

    def _y(self, count: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * count / (self.unit * _LEVELS)

    def _levels(self) -> Iterator[str]:
        """Lines across, with the bytes that they stand for."""
        for level in range(_LEVELS + 1):
            y = self._y(level * self.unit)
            yield f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="#ddd"/>'
            yield _text(_LEFT - 8, y + 4, bytes_text(level * self.unit), anchor="end")

    def _areas(self) -> Iterator[str]:
        """One area for each kind, on those below it."""
        floor = [0] * len(self.columns)
        for kind, color in _COLORS.items():
            top = [low + one.held[kind] for low, one in zip(floor, self.columns, strict=True)]
            if top != floor:
                path = f"M{self._edge(top)}L{self._edge(floor, back=True)}Z"
                yield f'<path d="{path}" fill="{color}"><title>{kind}</title></path>'
            floor = top

    def _edge(self, heights: Sequence[int], back: bool = False) -> str:
        points, start = list[str](), 0
        for height, run in groupby(heights):
            ends = start, start + len(list(run))
            points += [f"{self._x(end):.1f} {self._y(height):.1f}" for end in ends]
            start = ends[1]
        return "L".join(reversed(points) if back else points)

    def _phases(self) -> Iterator[str]:
        """The names of forward and backward, and a line between them."""
        phases = [one.phase for one in self.columns]
        for phase in dict.fromkeys(phases):
            first, count = phases.index(phase), phases.count(phase)
            if first:
                x = self._x(first)
                yield f'<path d="M{x:.1f} {_TOP - 12}V{_BOTTOM}" stroke="#333"/>'
            yield _text(self._x(first + count / 2), _TOP - 6, phase.value, anchor="middle")

    def _modules(self) -> Iterator[str]:
        """Ticks at which the step comes to a module."""
        yield f'<path d="M{_LEFT} {_BOTTOM}H{_RIGHT}" stroke="#333"/>'
        for tick in ticks_of([(one.phase, one.module) for one in self.columns]):
            x = self._x(tick.start)
            yield f'<path d="M{x:.1f} {_BOTTOM}v6" stroke="#333"/>'
            middle = self._x((tick.start + tick.end) / 2)
            turned = f' transform="rotate(-40 {middle:.1f} {_BOTTOM + 16})"'
            yield _text(middle, _BOTTOM + 16, tick.name, anchor="end", more=turned, size=11)

    def _peak(self) -> Iterator[str]:
        """A mark at the peak, and what it is."""
        x = self._x(self.columns.index(self.peak) + 0.5)
        y = self._y(self.peak.bytes)
        yield f'<path d="M{x:.1f} {y:.1f}V{_BOTTOM}" stroke="#333" stroke-dasharray="3 3"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#333"/>'
        yield _text(x, y - 9, bytes_text(self.peak.bytes), anchor="middle")
        said = f"peak: {bytes_text(self.peak.bytes)} in the {place_of(self.peak)}"
        yield _text(_LEFT, _HEIGHT - 12, said)

    def _legend(self) -> Iterator[str]:
        """The kinds, from the top down, with their bytes at the peak."""
        x, y = _RIGHT + 20, _TOP + 4
        yield _text(_WIDTH - 12, y, "at the peak", anchor="end", size=11)
        for kind, color in reversed(_COLORS.items()):
            if any(one.held[kind] for one in self.columns):
                y += 22
                yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}"/>'
                yield _text(x + 18, y, kind.value)
                yield _text(_WIDTH - 12, y, bytes_text(self.peak.held[kind]), anchor="end")


def _columns(moments: Sequence[Moment], most: int) -> Iterator[Moment]:
    """The moments, or of each few that share a pixel the one that holds the most."""
    each = math.ceil(len(moments) / most)
    for phase in Phase:
        mine = [one for one in moments if one.phase is phase]
        for start in range(0, len(mine), each):
            yield max(mine[start : start + each], key=lambda one: one.bytes)


def _unit(count: float) -> int:
    """A round number of bytes that is no smaller: 1, 2 or 5 times a power of ten, of its prefix."""
    prefix: int = 1024 ** max(0, math.floor(math.log(max(count, 1), 1024)))
    power: int = 10 ** math.floor(math.log10(max(count / prefix, 1)))
    return next(prefix * power * n for n in (1, 2, 5, 10, 20) if prefix * power * n >= count)


def _text(
    x: float, y: float, said: str, anchor: str = "start", size: int = 12, more: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{more}'
    return f"<text {place}>{html.escape(said)}</text>"
