"""A comparison of two plans as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shardlang.cost.composition import Kind
from shardlang.plan.busiest import busiest, sent, transfers_by
from shardlang.plan.compare import CallsChange, Comparison, TensorChange
from shardlang.plan.console import OP_COLORS, console_for, heading, text_of
from shardlang.plan.fold import fold, join_names, skeleton
from shardlang.plan.moments import Phase
from shardlang.plan.text import bytes_text
from shardlang.plan.totals import Total, total_of
from shardlang.plan.types import OPS, Plan, TensorRow


def render_comparison(
    comparison: Comparison, before: str, after: str, color: bool = False, width: int = 80
) -> str:
    """What differs; the last line sums it up.

    Args:
        before: the name of the spec that is compared against.
        after: the name of the spec.
    """
    console = console_for(color, width)
    console.print(Text(f"{before} → {after}", style="bold"))
    if comparison.before.mesh.whole != comparison.after.mesh.whole:
        console.print(f"  mesh {comparison.before.mesh} → {comparison.after.mesh}")
    _tensors(console, comparison.tensors)
    _calls(console, "collectives that differ: bytes (calls)", comparison.calls)
    _calls(console, "transfers between stages that differ: bytes (calls)", comparison.transfers)
    _totals(console, comparison)
    _memory(console, comparison)
    console.print()
    console.print(Text(summary(comparison), style="bold"))
    return text_of(console)


def _tensors(console: Console, changes: Sequence[TensorChange]) -> None:
    if not changes:
        return
    heading(console, "layouts that differ")
    for group in fold(changes, lambda c: (skeleton(c.name), _type(c.before), _type(c.after))):
        change = group[0]
        name = join_names([one.name for one in group])
        many = f"  ×{len(group)}" if len(group) > 1 else ""
        console.print(Text(f"  {name}{many}"))
        console.print(Text(f"      {_type(change.before)} → {_type(change.after)}", style="dim"))


def _type(row: TensorRow | None) -> str:
    return row.type if row is not None else "none"


def _calls(console: Console, title: str, changes: Sequence[CallsChange]) -> None:
    if not changes:
        return
    heading(console, title)
    for group in fold(
        changes, lambda c: (c.op, c.axes, c.phase, skeleton(c.module), c.before, c.after)
    ):
        one = group[0]
        module = join_names([change.module for change in group]) or "(model)"
        sums = [sum((c.before for c in group), Total()), sum((c.after for c in group), Total())]
        line = Text(f"  {one.phase:8} ").append(f"{one.op:14} ", style=OP_COLORS.get(one.op, ""))
        console.print(line.append(f"{'*'.join(one.axes)}  {module}"))
        console.print(Text(f"      {' → '.join(map(_cell, sums))}", style="dim"))


def _cell(total: Total) -> str:
    return f"{bytes_text(total.bytes)} ({total.count})" if total.count else "-"


def _totals(console: Console, comparison: Comparison) -> None:
    plans = (comparison.before, comparison.after)
    heading(console, "sent by the busiest device in one step (calls)")
    table = _two_columns()
    rows = [
        *((Text(op, style=OP_COLORS[op]), [_of_op(plan, op) for plan in plans]) for op in OPS),
        (Text("to other stages"), [_away(plan) for plan in plans]),
        *((Text(phase), [sent(plan, phase) for plan in plans]) for phase in Phase),
    ]
    for name, sums in rows:
        if any(total.count for total in sums):
            table.add_row(name, *map(_cell, sums), _change(sums))
    console.print(Padding(table, (0, 0, 0, 2)))


def _of_op(plan: Plan, op: str) -> Total:
    return total_of(row for row in busiest(plan) if row.op == op)


def _away(plan: Plan) -> Total:
    return sum((transfers_by(plan, phase) for phase in Phase), Total())


def _change(sums: Sequence[Total]) -> str:
    return signed(sums[1].bytes - sums[0].bytes)


def _two_columns() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _memory(console: Console, comparison: Comparison) -> None:
    old, new = comparison.before.memory, comparison.after.memory
    parts = {kind.value: (old.peak.held[kind], new.peak.held[kind]) for kind in Kind}
    parts["all"] = old.peak_bytes, new.peak_bytes
    heading(console, "memory on the fullest device, at the peak")
    table = _two_columns()
    for name, (was, now) in parts.items():
        if was or now:
            table.add_row(name, bytes_text(was), bytes_text(now), signed(now - was))
    console.print(Padding(table, (0, 0, 0, 2)))


def signed(count: int) -> str:
    """A change in bytes with its sign."""
    if count == 0:
        return "same"
    return ("+" if count > 0 else "-") + bytes_text(abs(count))


def summary(comparison: Comparison) -> str:
    """One line: how many layouts and collectives differ, and what that costs."""
    if comparison.same:
        return "no difference"
    counts = [f"{len(comparison.tensors)} layouts", f"{len(comparison.calls)} collectives"]
    counts += [f"{len(comparison.transfers)} transfers"] if comparison.transfers else []
    more, memory = signed(comparison.sent_bytes), signed(comparison.memory_bytes)
    return f"{', '.join(counts)} differ; sent {more}, memory {memory}"
