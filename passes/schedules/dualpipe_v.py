"""DualPipeV: forwards of one half of the stages beside backwards of the other (DeepSeek, 2025)."""

from __future__ import annotations

from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError
from shardlang.passes.schedules.rows import Row, schedule_of


def dualpipe_v(ranks: int, microbatches: int) -> PipelineSchedule:
    """Two stages for each rank, in a V: the first rank has the first stage and the last.

    In its steady part a rank has a forward and a backward of different microbatches in turn, of
    which one may send while the other computes. The phases are those that DeepSeek describes.

    Raises:
        ScheduleError: there are fewer than two microbatches for each rank.
    """
    if microbatches < 2 * ranks:
        raise ScheduleError(
            f"dualpipe_v needs at least {2 * ranks} microbatches on {ranks} ranks, and there are"
            f" {microbatches}"
        )
    return schedule_of([_row(rank, ranks, microbatches) for rank in range(ranks)])


def _row(rank: int, ranks: int, microbatches: int) -> Row:
    row, down, up = Row(), rank, 2 * ranks - 1 - rank
    behind = ranks - 1 - rank
    row.forward(down, 2 * behind)
    for _ in range(rank + 1):
        row.forward(down)
        row.forward(up)
    for _ in range(behind):
        row.backward(up, apart=True)
        row.weight()
        row.forward(up)
    for _ in range(microbatches - 2 * ranks + rank + 1):
        row.forward(down)
        row.backward(up)
        row.forward(up)
        row.backward(down)
    for _ in range(behind):
        row.backward(up)
        row.forward(up)
        row.backward(down)
    _cool_down(row, rank, behind)
    return row


def _cool_down(row: Row, rank: int, behind: int) -> None:
    """The last backwards; those of the second half leave their weights to fill what is idle."""
    down, up = rank, 2 * (rank + behind) + 1 - rank
    ends = [stage for _ in range(rank + 1) for stage in (up, down)]
    apart_from = 2 * ((rank + 1) // 2) + (1 - rank % 2)
    for place, stage in enumerate(ends):
        row.backward(stage, apart=place >= apart_from)
    for _ in range(behind):
        row.weight()
        row.backward(down, apart=True)
    while row.weight():
        pass
