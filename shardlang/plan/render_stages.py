"""The stages of a pipeline as text: what each computes and holds, what goes between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from shardlang.ir.pipeline.action import Work
from shardlang.plan.console import heading
from shardlang.plan.fold import fold, join_names, skeleton
from shardlang.plan.stage_types import PipelinePlan, Sent, StageRow, TransferRow
from shardlang.plan.text import bytes_text, count_text, seconds_text

_RIGHT = ("stage", "rank", "params", "bytes", "forward", "backward")
_DIRECTIONS = {
    Sent.VALUE: "forward", Sent.GRADIENT: "backward", Sent.PARAMETER: "at the start",
    Sent.PARAMETER_GRADIENT: "at the end",
}  # fmt: skip


def print_stages(console: Console, plan: PipelinePlan) -> None:
    """The table of stages, that of ranks with the bubble, and the transfers."""
    heading(console, f"stages along {plan.axis}: {schedule_text(plan)}")
    console.print(Padding(_stages(plan.stages), (0, 0, 0, 2)))
    said = "parameters on a device; flops of products on a device, for a microbatch"
    console.print(Padding(said, (0, 0, 0, 2)), style="dim")
    heading(console, f"ranks of {plan.axis}")
    console.print(Padding(_ranks(plan), (0, 0, 0, 2)))
    for line in bubble_lines(plan):
        console.print(Padding(line, (0, 0, 0, 2)), style="dim")
    if plan.transfers:
        heading(console, "sent between stages (one transfer, one step)")
        console.print(Padding(_transfers(plan.transfers), (0, 0, 0, 2)))


def schedule_text(plan: PipelinePlan) -> str:
    """`1f1b of 4 microbatches`."""
    return f"{plan.name} of {plan.schedule.microbatches} microbatches"


def _table(*columns: str, wide: str = "", right: Sequence[str] = _RIGHT) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in right else "left"
        ratio = 1 if name == wide else None
        table.add_column(
            name, justify=justify, ratio=ratio, no_wrap=name != wide, overflow="fold"
        )  # fmt: skip
    return table


def _stages(rows: Sequence[StageRow]) -> Table:
    table = _table("stage", "rank", "modules", "params", "bytes", "forward", "backward",
                   wide="modules")  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.stage), str(row.rank), ", ".join(short_names(row.modules)) or "-",
            count_text(row.parameters), bytes_text(row.params_bytes),
            count_text(row.flops[Work.FORWARD]), count_text(row.flops[Work.BACKWARD]),
        )  # fmt: skip
    return table


def short_names(modules: Sequence[str]) -> list[str]:
    """Names that differ in their numbers alone, as one."""
    return [join_names(group) for group in fold(modules, skeleton)]


def _ranks(plan: PipelinePlan) -> Table:
    titles = ("rank", "stages", "in flight", "peak memory", "at rest", "computes")
    table = _table(*titles, right=titles)
    for rank, memory in enumerate(plan.memories):
        stages = ", ".join(str(row.stage) for row in plan.stages if row.rank == rank)
        busy = plan.timeline.busy(rank) / (plan.timeline.makespan or 1)
        rest = memory.params_bytes + memory.buffers_bytes + memory.optimizer_bytes
        table.add_row(
            str(rank), stages, str(plan.in_flight[rank]), bytes_text(memory.peak_bytes),
            bytes_text(rest + memory.gradients_bytes), f"{busy:.1%}",
        )  # fmt: skip
    return table


def bubble_lines(plan: PipelinePlan) -> Iterator[str]:
    """The bubble beside its formula, and what the formula does not say."""
    bubble = plan.bubble
    said = f"bubble {bubble.predicted:.1%} of the time in which ranks compute"
    if plan.unit == "flops":
        yield f"{said}, by flops; transfers take none"
    else:
        yield f"{said}; the actions of a step take {seconds_text(plan.timeline.makespan)}"
        if plan.without_link:
            axes = ", ".join(plan.without_link)
            yield f"no link is stated of {axes}: what is sent over it takes no time"
    if bubble.formula is None:
        yield bubble.text
        return
    yield f"{bubble.text} = {bubble.formula:.1%} where all stages compute alike"


def _transfers(rows: Sequence[TransferRow]) -> Table:
    titles = ("what", "stages", "name", "", "bytes", "step")
    table = _table(*titles, wide="name", right=("", "bytes", "step"))
    for group in fold(rows, lambda row: (row.what, skeleton(row.name), row.bytes, row.count)):
        row = group[0]
        table.add_row(
            _DIRECTIONS[row.what], _pairs_text(group), _name(group),
            f"×{sum(one.count for one in group)}", bytes_text(row.bytes),
            bytes_text(sum(one.step_bytes for one in group)),
        )  # fmt: skip
    return table


def _name(group: Sequence[TransferRow]) -> str:
    name = join_names(list(dict.fromkeys(row.name for row in group)))
    return name if group[0].what in (Sent.VALUE, Sent.PARAMETER) else f"grad of {name}"


def _pairs_text(group: Sequence[TransferRow]) -> str:
    """`0→1`, or the first and the last of several pairs."""
    pairs = [f"{row.source}→{row.target}" for row in group]
    return ", ".join(pairs) if len(pairs) < 3 else f"{pairs[0]} … {pairs[-1]}"
