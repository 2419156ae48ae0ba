"""The resolver of `schedule` in `pipeline`: one with a name, or the rows of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Label, Span, error, join_words, quote
from shardlang.grammar.files import read_text
from shardlang.grammar.patterns import nearest
from shardlang.grammar.words import counted
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.kinds import INTERLEAVED, STAGES_OF_RANK
from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError, csv_actions
from shardlang.spec.arguments import named_arguments
from shardlang.spec.draft import Draft
from shardlang.spec.gather import is_path
from shardlang.spec.scope import Scope, kind_of
from shardlang.spec.types import AccumulateDecl

SUFFIX = ".csv"
"""How the name of the file of a schedule ends, links followed: no other is read, nor shown."""


@dataclass(frozen=True, slots=True)
class Order:
    """A schedule: its name, the stages of each device, and what a file says."""

    schedule: str = "1f1b"
    virtual: int = 1
    actions: PipelineSchedule | None = None


def resolve_order(
    item: t.Order | None, axis: t.Ident, count: AccumulateDecl | None, draft: Draft
) -> Order | None:
    """The schedule of a pipeline; None, with findings, where it is wrong.

    Args:
        count: the microbatches; None where they are wrong.
    """
    if item is None:
        return Order()
    if isinstance(item.name, t.Text):
        return _of_file(item, axis, count, draft)
    name, scope = item.name.text, draft.scope
    if name not in STAGES_OF_RANK:
        near = nearest(name.lower(), STAGES_OF_RANK)
        listed = f"the schedules are {join_words(quote(STAGES_OF_RANK), 'and')}"
        help = f"did you mean `{near[0]}`" if near else listed
        scope.report(error("SH0260", f"unknown schedule `{name}`", item.name.span, help=help))
        return None
    virtual = _virtual(item, name, scope)
    return None if virtual is None else Order(name, virtual)


def _virtual(item: t.Order, name: str, scope: Scope) -> int | None:
    """The stages of each device."""
    _, named = named_arguments(item.arguments, scope)
    if len(named) < len(item.arguments):
        return None  # what is wrong with one of them is found
    if name != INTERLEAVED and named:
        message = f"`{name}` takes no arguments: each device has {_stages(STAGES_OF_RANK[name])}"
        help = f"remove them, or write `{INTERLEAVED}(virtual = 2)`"
        scope.report(error("SH0260", message, item.arguments[0].span, help=help))
        return None
    for argument, (key, value) in zip(item.arguments, named, strict=True):
        if key != "virtual":
            message, help = f"`{name}` has no argument `{key}`", f"write `{name}(virtual = 2)`"
            scope.report(error("SH0260", message, argument.span, help=help))
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            shown = kind_of(value) if isinstance(value, (bool, str, tuple)) else f"{value}"
            message = (
                f"`virtual`, the stages of each device, is an integer of at least 2, not {shown}"
            )
            help = "write 2 or more, or take the schedule `1f1b`"
            scope.report(error("SH0260", message, argument.value.span, help=help))
            return None
        return value
    return STAGES_OF_RANK[name]


def _stages(count: int) -> str:
    return "one stage" if count == 1 else "two stages"


def _of_file(
    item: t.Order, axis: t.Ident, count: AccumulateDecl | None, draft: Draft
) -> Order | None:
    """The schedule that a file states; its path is relative to the file that writes it."""
    path = _path(item, draft)
    if path is None:
        return None
    try:
        text = read_text(path)
    except ValueError as fault:
        message = f"cannot read `{path}`: {fault}"
        draft.scope.report(error("SH0109", message, item.name.span, help="check the path"))
        return None
    read = _File(path, text, item, draft.scope)
    actions = read.schedule()
    if actions is None or not read.fits(actions, axis, count):
        return None
    return Order(item.name.text, actions=actions)


def _path(item: t.Order, draft: Draft) -> Path | None:
    if item.arguments:
        message, at = "a schedule of a file takes no arguments", item.arguments[0].span
        draft.scope.report(error("SH0260", message, at, help="remove them"))
        return None
    written = item.name.text
    path = (draft.folder / written) if is_path(written) else Path()
    if not written.endswith(SUFFIX) or path.resolve().suffix != SUFFIX:
        message = f"`{written}` is no schedule: the name of its file ends in `{SUFFIX}`"
        help = f"the schedules with a name are {join_words(quote(STAGES_OF_RANK), 'and')}"
        draft.scope.report(error("SH0260", message, item.name.span, help=help))
        return None
    return path


@dataclass(frozen=True, slots=True)
class _File:
    """The file of a schedule while it is looked at."""

    path: Path
    text: str
    item: t.Order
    scope: Scope

    def schedule(self) -> PipelineSchedule | None:
        """What the file says."""
        try:
            return PipelineSchedule.from_csv(self.text)
        except ScheduleError as fault:
            help = "a row is the actions of a device, such as `0F0,0F1,0B0,0B1`"
            self._report(str(fault), fault.place, help)
            return None

    def fits(self, actions: PipelineSchedule, axis: t.Ident, count: AccumulateDecl | None) -> bool:
        """Whether there is a row for each device, and the microbatches are those stated."""
        rows, devices = len(actions.ranks), self.scope.axes.get(axis.text, len(actions.ranks))
        if rows != devices:
            message = f"axis `{axis.text}` has {_devices(devices)}, and the schedule {rows} rows"
            lines = list(dict.fromkeys(row for _, (row, _) in csv_actions(self.text)))
            place = lines[min(rows, devices + 1) - 1], 1
            self._report(message, place, "write one row for each device")
            return False
        made = actions.microbatches
        if count is None or made == count.count:
            return True
        last = min(made - 1, count.count)
        message = f"the schedule has {made} microbatches, and {count.count} are stated"
        at = self._place(lambda action: action.microbatch == last)
        self._report(message, at, f"write `microbatches {made}`, or another schedule")
        return False

    def _place(self, wanted: Callable[[Action], bool]) -> tuple[int, int] | None:
        cells = csv_actions(self.text)
        return next((place for action, place in cells if action and wanted(action)), None)

    def _report(self, message: str, place: tuple[int, int] | None, help: str) -> None:
        """A finding at a cell of the file."""
        row, column = place or (1, 1)
        if place is not None and not message.startswith("row "):
            message = f"row {row}, column {column}: {message}"
        label = Label(self.item.name.span, "the schedule is stated here")
        at = self._span(row, column)
        self.scope.report(error("SH0260", message, at, labels=[label], help=help))

    def _span(self, row: int, column: int) -> Span:
        cells = (self.text.splitlines() or [""])[row - 1].split(",")
        begin = 1 + sum(len(cell) + 1 for cell in cells[: column - 1])
        width = max(1, len(cells[column - 1])) if column <= len(cells) else 1
        return Span(str(self.path), row, begin, row, begin + width)


def _devices(count: int) -> str:
    return counted(count, "device")
