"""The bytes that our programs and XLA's send, side by side.

    python benchmarks/gspmd/compare.py FOLDER [--markdown] [--record]

Reads what `ours.py` and `xla.py` have written into FOLDER. Bytes are those that the busiest device
sends in one step, forward and backward, by ring algorithms. `--markdown` prints the table of
`benchmarks/README.md`; `--record` writes XLA's figures down, to which the tests hold ours.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

RECORD = Path(__file__).parent / "xla.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One program: bytes of ours and of XLA's partitioners, and both losses."""

    name: str
    ours: int
    shardy: int
    gspmd: int
    losses: tuple[float, float]

    @property
    def peer(self) -> int:
        """The better of the two partitioners."""
        return min(self.shardy, self.gspmd)

    @property
    def ratio(self) -> float:
        """Ours over the peer's; 1 where nobody sends anything."""
        if self.peer:
            return self.ours / self.peer
        return math.inf if self.ours else 1.0


def rows_of(folder: Path) -> list[Row]:
    """All programs of a folder, the worst for us first.

    Raises:
        ValueError: the losses of the two sides differ, so that they are not the same program.
    """
    rows = [_row(path) for path in sorted(folder.glob("*.xla.json"))]
    wrong = [row for row in rows if not math.isclose(*row.losses, rel_tol=1e-4, abs_tol=1e-6)]
    if wrong:
        raise ValueError("; ".join(f"{row.name}: the losses are {row.losses}" for row in wrong))
    return sorted(rows, key=lambda row: (-row.ratio, row.name))


def _row(path: Path) -> Row:
    theirs = json.loads(path.read_text())
    mine = json.loads(path.with_name(path.name.replace(".xla.json", ".json")).read_text())
    sums = (sum(found.values()) for found in (mine["sent"], theirs["shardy"], theirs["gspmd"]))
    return Row(mine["name"], *sums, (mine["loss"], theirs["loss"]))


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    numbers = (f"{size:,}" for size in (row.shardy, row.gspmd, row.ours))
    return (row.name, *numbers, f"{row.ratio:.2f}")


def table(rows: list[Row], *, markdown: bool) -> str:
    """All rows under their heads, and the sums below."""
    heads = ("program", "Shardy", "GSPMD", "ours", "ours / better")
    lines = [heads, *map(cells, rows)]
    if markdown:
        rule = "|---" + "|--:" * (len(heads) - 1) + "|"
        text = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([text[0], rule, *text[1:]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def summary(rows: list[Row]) -> str:
    """How often we send more, the same, less; the median of the ratios."""
    more = sum(row.ours > row.peer for row in rows)
    same = sum(row.ours == row.peer for row in rows)
    median = statistics.median(row.ratio for row in rows)
    return (
        f"{len(rows)} programs: less than the better of the two on {len(rows) - more - same}, "
        f"the same on {same}, more on {more}; median ratio {median:.2f}"
    )


def record(rows: list[Row]) -> None:
    """Write down what XLA's partitioners send."""
    found = {row.name: {"shardy": row.shardy, "gspmd": row.gspmd} for row in rows}
    RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Print the table."""
    folder, *options = sys.argv[1:]
    rows = rows_of(Path(folder))
    print(table(rows, markdown="--markdown" in options))
    print(f"\n{summary(rows)}")
    if "--record" in options:
        record(rows)


if __name__ == "__main__":
    main()
