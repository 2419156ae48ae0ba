"""What the pages show is what the commands print, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import functools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import captures
from tests.broad import sampled
from tests.commands import ROOT
from tests.pages import PAGES, commands, output, same

SHOWN = [(page, command, shown) for page in PAGES for command, shown in commands(page)]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
"""Code, in which `all_reduce[tp](x)` is no link."""


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) > 10


@pytest.fixture(scope="module")
def one_program() -> Iterator[None]:
    """Commands on one spec read one program."""
    with captures.programs():
        yield


@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize(
    ("page", "command", "shown"),
    sampled(SHOWN, [each for each in SHOWN if ROOT / "examples" not in each[0].parents]),
    ids=[f"{page.relative_to(ROOT)}: {command}" for page, command, _ in SHOWN],
)
def test_the_command_prints_what_the_page_shows(page: Path, command: str, shown: str) -> None:
    printed = output(command)
    assert same(shown, printed), f"run `python -m tests.pages {page.relative_to(ROOT)}`\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = [page.parent / target for target in LINK.findall(CODE.sub("", text))]
    assert [target for target in targets if not target.exists()] == []


FILE = re.compile(r"`([\w/.-]+/[\w.-]+|[\w-]+\.(?:py|lark))`")
MODULE = re.compile(r"(?<![\w.])shardlang(?:\.\w+)+")
GIVEN = {"model.py", "m.py", "train.py", "spec.py"}
"""Files that a reader is taken to have."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    files = [
        name
        for name in FILE.findall(text)
        if name.endswith((".py", ".lark", ".shard")) and "*" not in name and name not in GIVEN
    ]
    known = {path.relative_to(ROOT).as_posix() for path in tracked()}
    lost = [n for n in files if not any(k == n or k.endswith(f"/{n}") for k in known)]
    lost += [name for name in MODULE.findall(text) if not is_there(name)]
    assert lost == []


@functools.cache
def tracked() -> list[Path]:
    """The files of the project that a page may name."""
    folders = (
        "grammar",
        "shardlang",
        "passes",
        "runtime",
        "tests",
        "examples",
        "benchmarks",
        "docs",
    )
    return [path for folder in folders for path in (ROOT / folder).rglob("*.*")]


def is_there(dotted: str) -> bool:
    """Whether a dotted name of the package is a module, or something in one."""
    with contextlib.suppress(AttributeError, ImportError):
        pkgutil.resolve_name(dotted)
        return True
    return False


def test_the_specs_of_the_readme_are_those_of_the_examples() -> None:
    page = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```shard\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    examples = [ROOT / "examples" / "llama" / name for name in ("dp_tp.shard", "sp.shard")]
    assert len(blocks) == len(examples)
    for block, example in zip(blocks, examples, strict=True):
        assert block.strip() in example.read_text()
