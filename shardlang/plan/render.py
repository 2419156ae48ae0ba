"""The plan as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shardlang.grammar.words import counted
from shardlang.plan.busiest import busiest, sent
from shardlang.plan.console import OP_COLORS, console_for, heading, text_of
from shardlang.plan.fold import (
    fold,
    join_names,
    join_sentences,
    skeleton,
    skeleton_of_sentence,
    split_prefix,
)
from shardlang.plan.groups import group_lines
from shardlang.plan.moments import Phase
from shardlang.plan.render_memory import print_memory, recomputed_text
from shardlang.plan.render_stages import print_stages
from shardlang.plan.render_totals import bound_text, print_totals
from shardlang.plan.text import bytes_text, mesh_lines, shape_text
from shardlang.plan.totals import bound_of, total_of
from shardlang.plan.types import CollectiveRow, Plan, TensorRow

_KINDS = {
    "param": "parameters, as they lie at rest",
    "buffer": "buffers",
    "input": "inputs",
    "value": "values, as the modules return them",
    "output": "outputs",
}


def render_plan(plan: Plan, color: bool = False, width: int = 80) -> str:
    """The whole plan; the last line sums it up."""
    console = console_for(color, width)
    _mesh(console, plan)
    for kind, title in _KINDS.items():
        rows = [row for row in plan.tensors if row.kind == kind]
        if rows:
            heading(console, title)
            console.print(Padding(tensor_table(rows, console.width - 2), (0, 0, 0, 2)))
    if plan.pipeline is not None:
        print_stages(console, plan.pipeline)
    for phase in Phase:
        _phase(console, plan, phase)
    print_totals(console, plan)
    _groups(console, plan)
    heading(console, f"memory on the fullest device{_of_fullest(plan)}")
    print_memory(console, plan.memory)
    if plan.recomputed is not None:
        console.print(Padding(recomputed_text(plan.recomputed), (0, 0, 0, 2)), style="dim")
    console.print()
    console.print(summary(plan), style="bold")
    return text_of(console)


def _mesh(console: Console, plan: Plan) -> None:
    names = []
    for axis in plan.mesh.whole.axes:
        parts = plan.mesh.named([axis.name])
        sizes = f" ({'*'.join(map(str, parts))})" if len(parts) > 1 else ""
        link = f" over {axis.link}" if axis.link else ""
        data = " (data)" if axis.name in plan.data_axes else ""
        names.append(f"{axis.name} = {axis.size}{sizes}{link}{data}")
    head = Text("mesh", style="bold")
    console.print(
        head.append(
            f"  {', '.join(names)}: {counted(plan.mesh.devices, 'device')}", style="not bold"
        )
    )
    for line in mesh_lines(plan.mesh.whole):
        console.print(Text(line, style="dim"))


def tensor_table(rows: Sequence[TensorRow], width: int = 78) -> Table:
    """One line per tensor: name, type, local shape and bytes; repeated ones are one, with `×N`.

    The local shape is left out where the line would be too long.
    """
    lines = list(_tensor_lines(rows))
    widest = [max(len(str(line[i])) for line in lines) for i in range(4)]
    keep = [0, 1, 2, 3] if sum(widest) + 6 <= width else [0, 1, 3]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for i in keep:
        table.add_column(justify="right" if i > 1 else "left", no_wrap=i > 1, overflow="fold")
    for line in lines:
        table.add_row(*[line[i] for i in keep])
    return table


def _tensor_lines(rows: Sequence[TensorRow]) -> Iterator[tuple[Text, Text, str, str]]:
    above = ("", 0)
    for group in fold(rows, lambda row: (skeleton(row.name), row.type)):
        prefix, rest = split_prefix(join_names([row.name for row in group]))
        if prefix and (prefix, len(group)) != above:
            yield Text(prefix), Text(""), "", f"×{len(group)}"
        above, row = (prefix, len(group)), group[0]
        many = f" ×{len(group)}" if len(group) > 1 else ""
        name = Text(f"  {rest}" if prefix else f"{rest}{many}")
        size = bytes_text(row.local_bytes) + (" expected" if row.expected else "")
        yield name, _type_text(row), shape_text(row.local_shape), size


def _type_text(row: TensorRow) -> Text:
    text = Text(row.type)
    text.highlight_regex(r"@[\w*]+(\([\d,]+\))?", "green")
    text.highlight_regex(r"\+\w+", "yellow")
    return text


def _phase(console: Console, plan: Plan, phase: Phase) -> None:
    rows = plan.select(phase=phase)
    if not rows:
        return
    most = busiest(plan, phase)
    total = total_of(most)
    axes_width = max(len("*".join(row.axes)) for row in rows)
    console.print()
    sizes = bytes_text(total.bytes), bound_text(bound_of(most))
    console.print(_columns([phase, "", "", calls_text(total.count), *sizes], "bold"))
    groups = fold_collectives(rows)
    reasons = [_reason(group) for group in groups]
    for group, reason, following in zip(groups, reasons, [*reasons[1:], ""], strict=True):
        line = _columns(_call_cells(group), "", axes_width)
        console.print(Padding(line, (0, 0, 0, 2)))
        if reason != following:
            console.print(Padding(Text(reason, style="dim"), (0, 0, 0, 6)))


def _reason(group: Sequence[CollectiveRow]) -> str:
    """Why, and for which stages of a pipeline."""
    said = join_sentences([row.reason for row in group])
    stages = sorted({row.stage for row in group if row.stage is not None})
    if not stages:
        return said
    several = stages != [stages[0]]
    shown = join_names([f"{stage}" for stage in stages])
    return f"{'stages' if several else 'stage'} {shown}: {said}"


def fold_collectives(rows: Iterable[CollectiveRow]) -> list[list[CollectiveRow]]:
    """Collectives that differ only in the number of their layer, together."""
    return fold(
        rows,
        lambda row: (
            row.op, row.axes, row.phase, skeleton(row.module), skeleton_of_sentence(row.reason),
            row.bytes, row.bound, row.count, row.stage is None,
        ),
    )  # fmt: skip


def _columns(cells: Sequence[str | Text], style: str, axes_width: int = 0) -> Table:
    """Op, axes, module, calls, bytes and their bound, the last three at the right edge."""
    table = Table(
        box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True, style=style
    )
    table.add_column(width=14)
    table.add_column(width=axes_width, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, width=8)
    table.add_column(justify="right", no_wrap=True, min_width=8)
    table.add_row(*cells)
    return table


def _call_cells(group: Sequence[CollectiveRow]) -> list[str | Text]:
    row, total = group[0], total_of(group)
    module = join_names([one.module for one in group]) or "(model)"
    op = Text(row.op, style=OP_COLORS[row.op])
    sizes = bytes_text(total.bytes), bytes_text(bound_of(group))
    return [op, "*".join(row.axes), module, f"×{total.count}", *sizes]


def calls_text(count: int) -> str:
    """A number of calls: `1 call`, `2 calls`."""
    return counted(count, "call")


def _groups(console: Console, plan: Plan) -> None:
    """The settings of each group of parameters, where there are several."""
    if not plan.groups:
        return
    heading(console, "groups of the optimizer")
    for settings, count, names in group_lines(plan.groups):
        console.print(Padding(Text(f"{count} {settings}"), (0, 0, 0, 2)))
        console.print(Padding(Text(names, style="dim"), (0, 0, 0, 6)))


def _of_fullest(plan: Plan) -> str:
    if plan.pipeline is None:
        return ""
    peaks = [memory.peak_bytes for memory in plan.pipeline.memories]
    return f", of rank {peaks.index(max(peaks))}"


def summary(plan: Plan) -> str:
    """One line: devices, calls, bytes and memory."""
    total = sent(plan)
    said = f"{calls_text(total.count)} sending {bytes_text(total.bytes)} a step"
    calls = said if total.count else "no collectives"
    memory = bytes_text(plan.memory.peak_bytes)
    return f"{counted(plan.mesh.devices, 'device')}: {calls}, at most {memory} of memory each"
