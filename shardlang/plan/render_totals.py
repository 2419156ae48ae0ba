"""What the busiest device sends in a step as text: by phase and op, and by axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shardlang.cost.links import seconds_of
from shardlang.ir.mesh import BANDWIDTHS
from shardlang.plan.busiest import busiest, busiest_rank, sent, transfers_by
from shardlang.plan.by_axis import TRANSFERS, by_axis
from shardlang.plan.console import OP_COLORS, heading
from shardlang.plan.moments import Phase
from shardlang.plan.text import bytes_text, seconds_text
from shardlang.plan.totals import Total, bound_of, totals_of
from shardlang.plan.types import Plan

_AXIS_COLUMNS: tuple[Literal["left", "right"], ...] = ("left", "left", "right", "right")


def print_totals(console: Console, plan: Plan) -> None:
    """By phase and op, then by axis, then the time that it takes at least."""
    if not plan.collectives:
        return
    heading(console, f"sent by the busiest device in one step (calls){_of_rank(plan)}")
    totals = totals_of(busiest(plan))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for phase in Phase:
        table.add_column(phase, justify="right")
    table.add_column("together", justify="right")
    for op in totals[Phase.FORWARD]:
        cells = [totals[phase][op] for phase in Phase]
        whole = sum(cells, Total())
        if whole.count:
            table.add_row(Text(op, style=OP_COLORS[op]), *map(_cell, [*cells, whole]))
    if plan.pipeline is not None:
        away = [transfers_by(plan, phase) for phase in Phase]
        table.add_row("to other stages", *map(_cell, [*away, sum(away, Total())]))
    sums = [sent(plan, phase) for phase in Phase]
    table.add_row("all", *map(_cell, [*sums, sum(sums, Total())]))
    bounds = [bound_of(busiest(plan, phase)) for phase in Phase]
    shown = (bound_text(bound) if bound else "-" for bound in (*bounds, sum(bounds)))
    table.add_row("any program", *shown)
    console.print(Padding(table, (0, 0, 0, 2)))
    _axes(console, plan)
    for line in _time_lines(plan):
        console.print(Text(f"  {line}", style="dim"))


def _axes(console: Console, plan: Plan) -> None:
    """What the same device sends over each axis, by op."""
    heading(console, f"of these over each axis{_of_rank(plan)}")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for justify in _AXIS_COLUMNS:
        table.add_column(justify=justify)
    for one in by_axis(plan):
        name = "*".join(one.axes)
        for op, total in one.ops.items():
            shown = "to other stages" if op == TRANSFERS else op
            table.add_row(name, Text(shown, style=OP_COLORS.get(op, "")), *_calls(total))
            name = ""
        if len(one.ops) > 1:
            table.add_row("", "all", *_calls(one.together))
    console.print(Padding(table, (0, 0, 0, 2)))


def _calls(total: Total) -> tuple[str, str]:
    return f"×{total.count}", bytes_text(total.bytes)


def bound_text(bound: int) -> str:
    """What any program must send, beside what this one sends: `≥ 2.50 KiB`."""
    return f"≥ {bytes_text(bound)}"


def _of_rank(plan: Plan) -> str:
    """Which rank of a pipeline it is."""
    return "" if plan.pipeline is None else f", of rank {busiest_rank(plan)}"


def _cell(total: Total) -> str:
    return f"{bytes_text(total.bytes)} ({total.count})" if total.count else "-"


def _time_lines(plan: Plan) -> Iterator[str]:
    seconds = seconds_of(((one.axes, one.together.bytes) for one in by_axis(plan)), plan.mesh)
    if seconds is None:
        return
    links = dict.fromkeys(axis.link for axis in plan.mesh.axes if axis.link in BANDWIDTHS)
    paces = ", ".join(f"{link} {BANDWIDTHS[link] / 1e9:g} GB/s" for link in links if link)
    yield f"estimate: {seconds_text(seconds)} on the links ({paces})"
