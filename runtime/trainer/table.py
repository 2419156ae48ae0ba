"""The runs in a folder, and their curves as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shardlang.runtime.trainer.run_folder import KILLED, RUN, RUNNING, is_held, records_of
from shardlang.runtime.trainer.typical import median

SPEEDS = ("step_s", "tokens_per_s", "mfu", "exposed_s")
"""What is told of a run as the median over its steps."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as its folder tells.

    Attributes:
        steps: the records of its steps.
    """

    name: str
    state: str
    began: str
    ended: str
    steps: tuple[dict[str, object], ...]

    @property
    def step(self) -> int:
        """The last step; 0 before the first."""
        return int(str(self.steps[-1]["step"])) if self.steps else 0

    @property
    def loss(self) -> float | None:
        """The loss of the last step that has one."""
        curve = self.curve("loss")
        return curve[-1][1] if curve else None

    def median(self, key: str) -> float | None:
        """What the steps but the first have of something, in the median."""
        return median([value for _, value in self.curve(key)])

    @property
    def peak_bytes(self) -> int | None:
        """The most memory of any step."""
        curve = self.curve("peak_bytes")
        return int(max(value for _, value in curve)) if curve else None

    def curve(self, key: str) -> list[tuple[int, float]]:
        """The steps and what they have of something, where it is a number."""
        pairs = ((line["step"], line.get(key)) for line in self.steps)
        return [
            (step, float(value))
            for step, value in pairs
            if isinstance(step, int) and isinstance(value, int | float)
        ]

    def to_json(self) -> dict[str, object]:
        """The entry of the document."""
        return {
            "run": self.name, "state": self.state, "step": self.step, "loss": self.loss,
            "began": self.began, "ended": self.ended,
            **{key: self.median(key) for key in SPEEDS}, "peak_bytes": self.peak_bytes,
        }  # fmt: skip


def runs_in(folder: Path) -> list[RunRow]:
    """The runs in a folder and below it, by when they began."""
    found = [_row(folder, path.parent) for path in sorted(folder.rglob(RUN))]
    return sorted(found, key=_begin)


def _begin(row: RunRow) -> float:
    """When a run began, in seconds; one that has not stands first."""
    return datetime.fromisoformat(row.began).timestamp() if row.began else 0.0


def _row(folder: Path, run: Path) -> RunRow:
    try:
        about = json.loads((run / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = {}
    state = str(about.get("state", "unknown"))
    if state == RUNNING and not is_held(run):
        state = KILLED
    name = str(run.relative_to(folder)) if run != folder else run.resolve().name
    steps = tuple(records_of(run))
    return RunRow(name, state, about.get("began", ""), about.get("ended", ""), steps)


WIDTH, HEIGHT, LEFT, TOP = 640, 220, 70, 34
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


def picture(rows: Sequence[RunRow]) -> str:
    """Loss and throughput over the steps, as SVG."""
    height = 2 * (HEIGHT + TOP + 30) + 20 * len(rows) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 30}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_panel(rows, "loss", "loss", TOP),
        *_panel(rows, "tokens_per_s", "tokens per second", 2 * TOP + HEIGHT + 30),
    ]
    for number, row in enumerate(rows):
        y, color = 2 * (HEIGHT + TOP + 30) + 10 + 20 * number, COLORS[number % len(COLORS)]
        lines.append(f'<rect x="{LEFT}" y="{y - 9}" width="14" height="4" fill="{color}"/>')
        text = f"{row.name}, {row.state} at step {row.step}"
        lines.append(f'<text x="{LEFT + 22}" y="{y}">{_escaped(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _panel(rows: Sequence[RunRow], key: str, title: str, top: int) -> Iterator[str]:
    curves = [row.curve(key) for row in rows]
    points = [point for curve in curves for point in curve]
    yield f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>'
    yield (
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>'
    )
    if not points:
        yield f'<text x="{LEFT + 10}" y="{top + 20}" fill="#666">no steps</text>'
        return
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    across, up = WIDTH / max(1, last - first), HEIGHT / (high - low)
    for value in (low, (low + high) / 2, high):
        y = top + HEIGHT - (value - low) * up
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        yield f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>'
    for step in dict.fromkeys((first, (first + last) // 2, last)):
        x = LEFT + (step - first) * across
        yield f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{step}</text>'
    for number, curve in enumerate(curves):
        placed = [
            f"{LEFT + (x - first) * across:.1f},{top + HEIGHT - (y - low) * up:.1f}"
            for x, y in curve
        ]
        color = COLORS[number % len(COLORS)]
        if len(placed) == 1:
            left, right = placed[0].split(",")
            yield f'<circle cx="{left}" cy="{right}" r="2.5" fill="{color}"/>'
        yield f'<polyline points="{" ".join(placed)}" fill="none" stroke="{color}"/>'


def _short(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2e}"
    digits = max(0, 3 - int(math.log10(abs(value)) + 1)) if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
