"""Reading the files of a spec: `use` statements are replaced by what they name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error, start_of_file
from shardlang.grammar.files import read_text
from shardlang.grammar.parser import parse

_MOST_FILES = 64

SUFFIX = ".shard"
"""How the name of every used file ends, links followed: no other file is read, nor shown."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A statement and the folder that its paths are relative to."""

    statement: t.Statement
    folder: Path


@dataclass(slots=True)
class Gathered:
    """All statements of a spec in order, and what was wrong with its files."""

    facts: list[Fact] = field(default_factory=list)
    findings: list[Diagnostic] = field(default_factory=list)
    root: str = ""
    files: int = 0


def gather_file(path: Path) -> Gathered:
    """Read a spec and, in place, every spec that it uses."""
    gathered = Gathered(root=str(path))
    text = _read(path, start_of_file(str(path)), gathered)
    if text is not None:
        _add(text, str(path), gathered, (_real(path),))
    return gathered


def gather_text(text: str, file: str) -> Gathered:
    """The same for a text; its paths are relative to the folder of `file`."""
    gathered = Gathered(root=file)
    _add(text, file, gathered, (_real(Path(file)),))
    return gathered


def _add(text: str, file: str, gathered: Gathered, open_files: tuple[str, ...]) -> None:
    gathered.files += 1
    tree, findings = parse(text, file)
    gathered.findings += findings
    if tree is None:
        return
    folder = Path(file).parent
    for statement in tree.statements:
        if isinstance(statement, t.Use):
            _add_used(statement, folder, gathered, open_files)
        else:
            gathered.facts.append(Fact(statement, folder))


def _add_used(use: t.Use, folder: Path, gathered: Gathered, open_files: tuple[str, ...]) -> None:
    span = use.path.span
    if not is_path(use.path.text):
        help = 'write the path of a spec: `use "base.shard"`'
        gathered.findings.append(error("SH0109", "no file can have this path", span, help=help))
        return
    path = folder / use.path.text
    if not use.path.text.endswith(SUFFIX) or not _real(path).endswith(SUFFIX):
        message = f"`{use.path.text}` is not a spec: the name of a used file ends in `{SUFFIX}`"
        gathered.findings.append(error("SH0109", message, span, help="rename it, if it is a spec"))
        return
    if _real(path) in open_files:
        gathered.findings.append(_cycle(use, path))
        return
    if gathered.files >= _MOST_FILES:
        message = f"the spec is made of more than {_MOST_FILES} files"
        gathered.findings.append(error("SH0109", message, span, help="merge some of them"))
        return
    text = _read(path, span, gathered)
    if text is not None:
        _add(text, str(path), gathered, (*open_files, _real(path)))


def is_path(text: str) -> bool:
    """Whether a file can have that path: it is not empty, and UTF-8 without a null."""
    try:
        return bool(text) and b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _cycle(use: t.Use, path: Path) -> Diagnostic:
    return error(
        "SH0217",
        f"`{use.path.text}` is used by itself",
        use.path.span,
        labels=[Label(use.span, "this statement closes the circle")],
        notes=[f"the file is {path}"],
        help="move what both files need to a third one",
    )


def _read(path: Path, span: Span, gathered: Gathered) -> str | None:
    """The text of a file, or None with a finding."""
    try:
        return read_text(path)
    except ValueError as fault:
        message = f"cannot read `{path}`: {fault}"
        gathered.findings.append(error("SH0109", message, span, help="check the path"))
        return None


def _real(path: Path) -> str:
    """The path without links, as far as they lead."""
    return os.path.realpath(path)
