"""`shardlang runs`: the runs in a folder, and their curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, common_options
from shardlang.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    from shardlang.runtime.trainer.table import RunRow

HEADER = ("run", "state", "step", "loss", "tokens/s", "mfu", "exposed s", "peak", "when")


@click.command("runs")
@click.argument("folder", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw loss and throughput into this file, as SVG or PNG.",
)
@common_options
def command(context: Context, folder: Path, plot: Path | None) -> None:
    """List the runs in FOLDER and below it: where each stands, its last step and loss."""
    from shardlang.runtime.trainer.table import picture, runs_in

    if plot is not None:
        check_picture(plot, "--plot")
    rows = runs_in(folder)
    if plot is not None:
        write_picture(plot, picture(rows))
    if context.is_json:
        context.print_document({"runs": [row.to_json() for row in rows]})
        return
    if not rows:
        context.show(f"no runs in `{folder}`; `shardlang run SPEC --out FOLDER` makes one")
        return

    table = [HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        context.show("  ".join(padded).rstrip())


def _cells(row: RunRow) -> tuple[str, ...]:
    from shardlang.plan.text import bytes_text

    most = "-" if row.peak_bytes is None else bytes_text(row.peak_bytes)
    return (
        row.name, row.state, f"{row.step}", _shown(row.loss, ".4f"),
        _shown(row.median("tokens_per_s"), ",.0f"), _shown(row.median("mfu"), ".1%"),
        _shown(row.median("exposed_s"), ".3f"), most, (row.ended or row.began)[:19],
    )  # fmt: skip


def _shown(number: float | None, form: str) -> str:
    """A number; a dash where there is none."""
    return "-" if number is None else format(number, form)
