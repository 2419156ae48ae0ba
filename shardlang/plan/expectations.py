"""Expectations against a plan: the `expect` lines of a spec that the plan's rows do not meet."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

from shardlang.bind.layouts import Misfit, bind_layout
from shardlang.grammar.diagnostics import Diagnostic, error, join_words, quote
from shardlang.grammar.patterns import nearest_to_pattern
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Mesh
from shardlang.ir.records import Stated
from shardlang.plan.totals import bound_of
from shardlang.plan.transfer_calls import transfer_calls
from shardlang.plan.types import CollectiveRow, Plan, TensorRow
from shardlang.spec.types import (
    ExpectCount,
    ExpectForbid,
    ExpectLayout,
    ExpectLocal,
    ExpectLocalBytes,
    SelectExpr,
    Spec,
    TimesBound,
)

FULL_GATHER = "full_gather"
"""What selects the gathers of more than a device holds before or after, whatever their kind."""

ANY = "any"
"""What selects calls of every kind, transfers among them."""

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def check_expects(spec: Spec, plan: Plan) -> list[Diagnostic]:
    """The findings for every expectation that the plan does not meet."""
    findings: list[Diagnostic] = []
    calls = [*plan.collectives, *transfer_calls(plan)]
    for expect in spec.expects:
        if isinstance(expect, (ExpectCount, ExpectForbid)):
            rows = [row for row in calls if selects(expect.select, row, plan.mesh)]
            findings += _check_rows(expect, rows)
        else:
            findings += _check_tensors(expect, plan.tensors, plan.mesh)
    return findings


def selects(select: SelectExpr, row: CollectiveRow, mesh: Mesh) -> bool:
    """Whether a row of collectives or transfers is among the selected.

    It is where it runs over all the named axes, a part of each at least, and in a matching module
    or in one inside it.
    """
    over = set(mesh.named(row.axes))
    return (
        _is_of_kind(select.op, row)
        and select.phase in (None, row.phase)
        and all(over.intersection(mesh.named([axis])) for axis in select.axes or ())
        and _inside(select, row.module)
    )


def _is_of_kind(op: str, row: CollectiveRow) -> bool:
    return row.full_gather if op == FULL_GATHER else op in (ANY, row.op)


def _inside(select: SelectExpr, module: str) -> bool:
    if select.pattern is None:
        return True
    return any(select.pattern.matches(outer) for outer in _outward(module))


def _outward(module: str) -> Iterator[str]:
    """A module's name and those of the modules around it."""
    parts = module.split(".") if module else []
    for count in range(len(parts), -1, -1):
        yield ".".join(parts[:count])


def _check_rows(
    expect: ExpectCount | ExpectForbid, rows: Sequence[CollectiveRow]
) -> list[Diagnostic]:
    shown = _select_text(expect.select)
    count = sum(row.count for row in rows)
    if isinstance(expect, ExpectForbid):
        if not count:
            return []
        message = f"`{shown}` is forbidden, the plan has {count}"
        help = "change the layouts that need it, or drop the line"
        notes = _row_notes(_largest(rows))
        return [error("SH0502", message, expect.span, notes=notes, help=help)]
    number = count if expect.measure == "count" else sum(row.bytes for row in rows)
    if _COMPARE[expect.comparison](number, _limit(expect.bound, rows)):
        return []
    what, unit = ("bytes ", _bytes) if expect.measure == "bytes" else ("", str)
    if expect.measure == "bytes" and unit(number) == _limit_text(expect.bound, rows, unit):
        unit = "{}B".format
    limit = _limit_text(expect.bound, rows, unit)
    rows = _largest(rows)
    if isinstance(expect.bound, TimesBound):
        rows = sorted(rows, key=lambda row: row.bound - row.bytes)
    message = f"`{what}{shown}` is {unit(number)}, expected {expect.comparison} {limit}"
    help = "change the layouts that cause them, or state the number that you accept"
    return [error("SH0501", message, expect.span, notes=_row_notes(rows), help=help)]


def _limit(bound: int | TimesBound, rows: Sequence[CollectiveRow]) -> float:
    """The number on the right of an expectation, of the rows that are selected."""
    return bound.factor * bound_of(rows) if isinstance(bound, TimesBound) else bound


def _limit_text(
    bound: int | TimesBound, rows: Sequence[CollectiveRow], unit: Callable[[int], str]
) -> str:
    if not isinstance(bound, TimesBound):
        return unit(bound)
    least = f"{unit(bound_of(rows))}, what any program must send"
    if bound.factor == 1:
        return f"bound: {least}"
    return f"{bound.factor} * bound: {unit(int(_limit(bound, rows)))}, {bound.factor} times {least}"


def _select_text(select: SelectExpr) -> str:
    words = [select.phase] if select.phase else []
    words.append(select.op)
    words += ["over", "*".join(select.axes)] if select.axes else []
    words += ["in", f'"{select.pattern}"'] if select.pattern is not None else []
    return " ".join(words)


def _largest(rows: Iterable[CollectiveRow]) -> list[CollectiveRow]:
    return sorted(rows, key=lambda row: -row.bytes)


def _row_notes(rows: Sequence[CollectiveRow], most: int = 5) -> list[str]:
    """One note per row."""
    notes = [_row_text(row) for row in rows[:most]]
    return [*notes, f"and {len(rows) - most} more"] if len(rows) > most else notes


def _row_text(row: CollectiveRow) -> str:
    module = f" in `{row.module}`" if row.module else ""
    axes = "*".join(row.axes)
    sent = _bytes(row.bytes)
    least = f" (any program: {_bytes(row.bound)})" if row.bound < row.bytes else ""
    text = f"{row.count} x {row.phase} {row.op} over {axes}{module}, {sent}{least}"
    return f"{text}: {row.reason}" if row.reason else text


def _bytes(number: int) -> str:
    for unit, size in _UNITS:
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number}B"


def _check_tensors(
    expect: ExpectLayout | ExpectLocal | ExpectLocalBytes, tensors: Sequence[TensorRow], mesh: Mesh
) -> list[Diagnostic]:
    rows = [row for row in tensors if expect.pattern.matches(row.name)]
    if not rows:
        near = nearest_to_pattern(expect.pattern.text, [row.name for row in tensors])
        help = (
            f"the nearest are {join_words(quote(near), 'and')}" if near else "see `shardlang plan`"
        )
        message = f"the plan has no tensor `{expect.pattern}`"
        return [error("SH0504", message, expect.span, help=help)]
    if isinstance(expect, ExpectLayout):
        checked = (_check_row_layout(expect, row, mesh) for row in rows)
        return [finding for finding in checked if finding is not None]
    if isinstance(expect, ExpectLocal):
        return _check_local_shapes(expect, rows)
    return _check_local_bytes(expect, rows)


def _check_local_shapes(expect: ExpectLocal, rows: Sequence[TensorRow]) -> list[Diagnostic]:
    """One finding for all tensors whose shards have another shape."""
    wrong = [row for row in rows if not _sizes_fit(expect.sizes, row.local_shape)]
    if not wrong:
        return []
    wanted = ", ".join("?" if size is None else str(size) for size in expect.sizes)
    shape = list(wrong[0].local_shape)
    found = f"`{wrong[0].name}` is {shape} on a device, expected [{wanted}]"
    return [_local_finding(expect, found, wrong)]


def _sizes_fit(wanted: Sequence[int | None], found: Sequence[int]) -> bool:
    return len(wanted) == len(found) and all(
        size in (None, have) for size, have in zip(wanted, found, strict=True)
    )


def _check_local_bytes(expect: ExpectLocalBytes, rows: Sequence[TensorRow]) -> list[Diagnostic]:
    """One finding for all tensors whose shards have other bytes, the largest first."""
    compare = _COMPARE[expect.comparison]
    wrong = [row for row in rows if not compare(row.local_bytes, expect.bound)]
    if not wrong:
        return []
    wrong.sort(key=lambda row: -row.local_bytes)
    held, bound = _bytes(wrong[0].local_bytes), _bytes(expect.bound)
    found = f"`{wrong[0].name}` is {held} on a device, expected {expect.comparison} {bound}"
    return [_local_finding(expect, found, wrong)]


def _local_finding(
    expect: ExpectLocal | ExpectLocalBytes, message: str, wrong: Sequence[TensorRow], most: int = 5
) -> Diagnostic:
    notes = [
        f"`{row.name}` lies as `{row.layout}`: {list(row.local_shape)} on a device,"
        f" {_bytes(row.local_bytes)}"
        for row in wrong[:most]
    ]
    notes += [f"and {len(wrong) - most} more"] if len(wrong) > most else []
    help = "split the tensor over more or other axes, or state the size that you accept"
    return error("SH0505", message, expect.span, notes=notes, help=help)


def _check_row_layout(expect: ExpectLayout, row: TensorRow, mesh: Mesh) -> Diagnostic | None:
    wanted = bind_layout(expect.layout, row.layout.shape, mesh, expect.span)
    if isinstance(wanted, Misfit):
        return error(wanted.code, f"`{row.name}` {wanted.problem}", wanted.span, help=wanted.help)
    if row.layout.partial == wanted.layout.partial and _dims_fit(wanted, row.layout):
        return None
    message = f"`{row.name}` lies as `{row.layout}`, expected `{wanted.layout}`"
    help = "state the layout with `value`, or change the line"
    return error("SH0503", message, expect.span, help=help)


def _dims_fit(wanted: Stated, found: Layout) -> bool:
    pairs = zip(wanted.layout.dims, found.dims, strict=True)
    return all(
        index in wanted.open or str(stated) == str(dim) for index, (stated, dim) in enumerate(pairs)
    )
