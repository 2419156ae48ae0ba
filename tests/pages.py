"""The console blocks of the pages: commands and what they print.

`python -m tests.pages` runs every command and writes its output into the pages.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.commands import ROOT, shardlang

BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
PAGES = sorted([ROOT / "README.md", *ROOT.glob("examples/*/README.md"), *ROOT.glob("docs/*.md")])
ROUNDING = re.compile(r"\d\.\de[-+]\d\d|worst `[^`]*`")
"""What differs from one processor to the next."""


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Every command of a page's console blocks, with the output that the page shows."""
    for block in BLOCK.findall(page.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


def output(command: str) -> str:
    """What `shardlang … | …` prints in a terminal 80 columns wide, findings included."""
    ours, _, pipe = command.partition(" | ")
    program, *args = shlex.split(ours)
    assert program == "shardlang", command
    os.environ["COLUMNS"] = "80"
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        _, out, err = shardlang(*args)
    finally:
        os.chdir(before)
    text = out or err
    if pipe:
        text = subprocess.run(
            ["bash", "-c", pipe], input=text, capture_output=True, text=True, check=True
        ).stdout
    return text


def same(shown: str, printed: str) -> bool:
    """Whether two outputs agree but for rounding and white space at the ends of lines."""
    return normal(shown) == normal(printed)


def normal(text: str) -> list[str]:
    """Lines without rounding errors and trailing white space."""
    return [ROUNDING.sub("~", line).rstrip() for line in text.strip("\n").splitlines()]


def rewrite(page: Path) -> None:
    """Write the real output of every command into a page."""

    def printed(command: str) -> str:
        return output(command).strip("\n")

    def filled(match: re.Match[str]) -> str:
        parts = re.split(r"^\$ ", match.group(1), flags=re.MULTILINE)[1:]
        names = [part.partition("\n")[0] for part in parts]
        texts = [f"$ {name}\n{printed(name)}\n" for name in names]
        return "".join(line.rstrip() + "\n" for line in "".join(texts).splitlines())

    page.write_text(BLOCK.sub(filled, page.read_text()))


if __name__ == "__main__":
    for path in [Path(name) for name in sys.argv[1:]] or PAGES:
        rewrite(path)
