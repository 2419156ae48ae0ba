"""Consoles that write to a string, and what all that is written to them shares."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.text import Text

OP_COLORS = {
    "all_gather": "blue",
    "all_reduce": "red",
    "reduce_scatter": "magenta",
    "all_to_all": "yellow",
    "send_recv": "cyan",
}
"""The colour of each op, on terminals."""


def console_for(color: bool, width: int) -> Console:
    """A console that writes to a string."""
    return Console(
        file=StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False,
        color_system="standard" if color else None, emoji=False, markup=False,
    )  # fmt: skip


def text_of(console: Console) -> str:
    """What a console has written, without spaces at the ends of lines."""
    assert isinstance(console.file, StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().split("\n")]
    return "\n".join(lines).rstrip("\n")


def heading(console: Console, title: str) -> None:
    """A title with an empty line above."""
    console.print()
    console.print(Text(title, style="bold"))
