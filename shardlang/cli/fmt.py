"""`shardlang fmt`: specs in canonical form."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from shardlang.cli.common import Context, common_options
from shardlang.grammar.diagnostics import error, has_errors, start_of_file
from shardlang.grammar.files import LARGEST_BYTES, decoded, read_text
from shardlang.grammar.formatter import format_tree
from shardlang.grammar.parser import parse
from shardlang.grammar.render import Sources

_STDIN = "-"


@dataclass(frozen=True, slots=True)
class _Formatted:
    file: str
    old: str
    new: str

    @property
    def changed(self) -> bool:
        return self.old != self.new


@click.command("fmt")
@click.argument("paths", metavar="[PATH|-]...", nargs=-1)
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if a file would change.")
@click.option("--diff", is_flag=True, help="Change nothing; print what would change.")
@common_options
def command(context: Context, paths: tuple[str, ...], check: bool, diff: bool) -> None:
    """Rewrite specs in canonical form.

    PATH is a file, a folder with .shard files, or - for stdin to stdout; the default is the
    current folder.
    """
    context.findings_are_result = check
    files = list(_files(paths or (".",)))
    context.spec_path = files[0] if len(files) == 1 else None
    results = [result for file in files if (result := _format(file, context)) is not None]
    for result in results:
        _apply(result, context, check, diff)
    changed = [result.file for result in results if result.changed]
    failed = has_errors(context.findings) or (check and bool(changed))
    payload = {"files": len(files), "changed": changed}
    if failed:
        context.fail(payload)
    context.finish(payload)


def _files(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        if Path(path).is_dir():
            yield from sorted(map(str, Path(path).rglob("*.shard")))
        else:
            yield path


def _format(file: str, context: Context) -> _Formatted | None:
    text = _read(file, context)
    if text is None:
        return None
    name = "<stdin>" if file == _STDIN else file
    if file == _STDIN:
        context.sources = Sources({name: text})
    tree, findings = parse(text, name)
    context.add(findings)
    if tree is None:
        return None
    new = format_tree(tree)
    again, _ = parse(new, name)
    assert again == tree, f"formatting {name} would change its meaning"
    return _Formatted(file, text, new)


def _read(file: str, context: Context) -> str | None:
    try:
        if file == _STDIN:
            return decoded(sys.stdin.buffer.read(LARGEST_BYTES + 1))
        return read_text(Path(file))
    except (OSError, ValueError) as fault:
        message = f"cannot read `{file}`: {fault}"
        context.add([error("SH0109", message, start_of_file(file), help="check the path")])
        return None


def _apply(result: _Formatted, context: Context, check: bool, diff: bool) -> None:
    if diff and result.changed:
        context.show(_diff(result))
    elif check and result.changed:
        context.show(f"would reformat {result.file}")
    if check or diff:
        return
    if result.file == _STDIN:
        if not context.is_json:
            click.echo(result.new, nl=False)
    elif result.changed:
        _write(Path(result.file), result.new)
        context.say(f"reformatted {result.file}")


def _diff(result: _Formatted) -> str:
    old, new = result.old.splitlines(), result.new.splitlines()
    return "\n".join(difflib.unified_diff(old, new, result.file, result.file, lineterm=""))


def _write(path: Path, text: str) -> None:
    """Replace the file at once, so that an interruption leaves the old text."""
    target = path.resolve()
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.chmod(target.stat().st_mode & 0o7777)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
