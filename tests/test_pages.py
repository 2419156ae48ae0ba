"""What the pages show is what the commands print, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.pages import PAGES, commands, output, same

SHOWN = [(page, command, shown) for page in PAGES for command, shown in commands(page)]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
"""Code, in which `all_reduce[tp](x)` is no link."""


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) > 10


@pytest.mark.parametrize(
    ("page", "command", "shown"),
    SHOWN,
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


def test_the_specs_of_the_readme_are_those_of_the_examples() -> None:
    page = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```shard\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    examples = [ROOT / "examples" / "llama" / name for name in ("dp_tp.shard", "sp.shard")]
    assert len(blocks) == len(examples)
    for block, example in zip(blocks, examples, strict=True):
        assert block.strip() in example.read_text()
