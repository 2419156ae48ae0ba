"""The timeline of a pipeline in a terminal: a row for each rank, a cell for each forward's time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shardlang.cost.timeline import Timeline, timeline
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule

IDLE, GOES_ON = ".", "-"


def timeline_lines(spans: Timeline, width: int = 80) -> Iterator[str]:
    """Rows of cells, below one another where a step is too long for one row.

    A cell is about the time of a forward, and an action takes one at least: `F0` is the forward of
    the first microbatch, `2F0` that of stage 2 where ranks have several.
    """
    schedule = spans.schedule
    cells = [_cells(schedule, row) for row in _in_cells(spans)]
    widest = max(len(cell) for row in cells for cell in row)
    head = len(str(len(cells) - 1)) + len("rank ") + 2
    each = max(1, (width - head + 1) // (widest + 1))
    for start in range(0, len(cells[0]), each):
        if start:
            yield ""
        for rank, row in enumerate(cells):
            shown = " ".join(cell.ljust(widest) for cell in row[start : start + each])
            yield f"rank {rank:<{head - 7}}  {shown}".rstrip()


def _in_cells(spans: Timeline) -> list[list[tuple[Action, int, int]]]:
    """Every action of a rank with the cell in which it begins and the one before which it ends."""
    forwards = [
        spans.spans[a].end - spans.spans[a].begin for a in spans.spans if a.work is Work.FORWARD
    ]
    unit = statistics.median(forwards) or spans.makespan or 1.0

    def cells(action: Action) -> float:
        span = spans.spans[action]
        return float(max(1, round((span.end - span.begin) / unit)))

    made = timeline(
        spans.schedule,
        cells,
        (replace(one, seconds=round(one.seconds / unit)) for one in spans.shipments),
    )
    return [
        [(a, round(made.spans[a].begin), round(made.spans[a].end)) for a in row]
        for row in spans.schedule.ranks
    ]


def _cells(schedule: PipelineSchedule, row: Sequence[tuple[Action, int, int]]) -> list[str]:
    """The cells of one rank, idle ones included."""
    found: list[str] = []
    for action, begin, end in row:
        name = label(action, schedule)
        found += [IDLE * len(name)] * (begin - len(found))
        found += [name, *[GOES_ON * len(name)] * (end - begin - 1)]
    return found


def label(action: Action, schedule: PipelineSchedule) -> str:
    """`F0`; with the stage where a rank has several."""
    several = schedule.stages > len(schedule.ranks)
    return str(action) if several else f"{action.work.value}{action.microbatch}"
