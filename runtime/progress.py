"""What a training run shows while it runs: a bar on a terminal, else one JSON line per step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shardlang.runtime.trainer.records import Record


def print_lines(
    records: Iterable[Record],
    stream: TextIO | None = None,
    on_closed: Callable[[], None] | None = None,
) -> Iterator[Record]:
    """Pass records through, printing one line of JSON for each.

    `on_closed` is called where nobody reads the lines any more, as under `head -1`.
    """
    for record in records:
        try:
            line = json.dumps(record.as_json(), allow_nan=False)
            print(line, file=stream or sys.stdout, flush=True)
        except BrokenPipeError:
            if on_closed is None:
                raise
            on_closed()
        yield record


def show_bar(records: Iterable[Record], steps: int, title: str) -> Iterator[Record]:
    """Pass records through, drawing a progress bar on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=steps, shown="")
        for record in records:
            progress.update(task, advance=1, shown=_shown(record))
            yield record


def _shown(record: Record) -> str:
    loss = f"loss {record.loss:.4f}  " if record.loss is not None else ""
    used = f"  {record.mfu:.1%} mfu" if record.mfu is not None else ""
    return f"{loss}{record.tokens_per_s:,.0f} tokens/s{used}"


def is_terminal() -> bool:
    """Whether both outputs go to a person."""
    return sys.stdout.isatty() and sys.stderr.isatty()
