"""Small texts that plans, graphs and explanations share."""

from __future__ import annotations

from collections.abc import Iterable

from shardlang.ir.mesh import Mesh

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: int) -> str:
    """A number of bytes with three digits at least: `98.3 KiB`."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 100 or size == int(size) else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {_UNITS[unit]}"


def count_text(count: int) -> str:
    """A number with three digits at least: `26.7 M`."""
    size, units = float(count), iter(("", " k", " M", " G", " T", " P"))
    unit = next(units)
    while size >= 1000 and unit != " P":
        size, unit = size / 1000, next(units)
    digits = 0 if not unit or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f}{unit}"


def seconds_text(seconds: float) -> str:
    """A duration: `1.25 ms`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} us"


def shape_text(shape: Iterable[int]) -> str:
    """A shape: `[4, 128]`."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def mesh_lines(mesh: Mesh, most: int = 16) -> list[str]:
    """The device numbers as grids: rows along the last axis but one, columns along the last.

    Further axes give one grid for each of their positions; what exceeds `most` is left out.
    """
    axes = [axis for axis in mesh.axes if axis.size > 1] or list(mesh.axes)
    columns = axes[-1]
    rows = axes[-2] if len(axes) > 1 else None
    outer = axes[:-2]
    count = columns.size * (rows.size if rows else 1)
    lines: list[str] = []
    for grid in range(min(mesh.devices // count, 4)):
        if outer:
            at = mesh.coord(grid * count)
            lines.append("  " + ", ".join(f"{axis.name} {at[axis.name]}" for axis in outer))
        lines += _grid(
            grid * count, rows.size if rows else 1, columns.size, most, mesh, rows is not None
        )
    if mesh.devices // count > 4:
        lines.append(f"  … {mesh.devices // count} grids in all")
    return lines


def _grid(first: int, rows: int, columns: int, most: int, mesh: Mesh, named: bool) -> list[str]:
    axes = [axis for axis in mesh.axes if axis.size > 1] or list(mesh.axes)
    width = len(str(mesh.devices - 1))
    left = axes[-2].name if named else ""
    margin = len(left) + 1 + len(str(rows - 1)) if named else 0

    def line(head: str, cells: list[str]) -> str:
        return f"  {head:>{margin}}  " + " ".join(f"{cell:>{width}}" for cell in cells)

    def cells(start: int) -> list[str]:
        shown = [str(start + i) for i in range(min(columns, most))]
        return [*shown, "…"] if columns > most else shown

    lines = [line("", cells(0)) + f"  {axes[-1].name}"]
    for row in range(min(rows, most)):
        head = f"{left} {row}" if named else ""
        lines.append(line(head, cells(first + row * columns)))
    return [*lines, line("…", [])] if rows > most else lines
