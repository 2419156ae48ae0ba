"""Every example: canonical text, no findings, and a proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import captures
from tests.all_specs import LARGE
from tests.broad import sampled
from tests.commands import ROOT, document, shardlang
from tests.pages import PAGES, commands

FOLDER = ROOT / "examples"
SPECS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.shard"))
PROVEN = [spec for spec in SPECS if Path(spec).name not in LARGE]
FURTHER = {
    "gpt2/fast.shard", "llama/dp_tp.shard", "llama/fsdp_tp.shard", "llama/gqa.shard",
    "llama/gspmd2d.shard", "moe/gathered.shard", "moe/stored.shard", "resnet/rows.shard",
    "resnet/tiles.shard", "t5/pipeline.shard", "uneven/hidden.shard", "uneven/kv.shard",
    "uneven/seq.shard", "uneven/vocab.shard",
}  # fmt: skip
"""Those whose statements and models others have too: `make broad` and `make verify` prove them."""
ON_A_PAGE = {command for page in PAGES for command, _ in commands(page)}
"""What `tests/test_pages.py` runs; a proof that fails prints something else than the page shows."""


def test_every_example_has_a_page_that_names_its_specs() -> None:
    for spec in map(Path, SPECS):
        page = FOLDER / spec.parent / "README.md"
        assert page.exists(), spec
        assert spec.name in page.read_text(), spec


@pytest.mark.parametrize("spec", SPECS)
def test_the_text_is_canonical(spec: str) -> None:
    status, out, err = shardlang("fmt", "--check", FOLDER / spec)
    assert status == 0, out + err


@pytest.mark.parametrize("spec", sampled(PROVEN, set(PROVEN) - FURTHER))
def test_it_has_no_findings_and_computes_the_same(spec: str) -> None:
    """What the spec expects of the plan is checked here too."""
    with captures.programs():
        status, out, err = shardlang("check", FOLDER / spec)
        assert status == 0, out + err
        if f"shardlang verify examples/{spec}" in ON_A_PAGE:
            return
        found = document("verify", FOLDER / spec)
    assert found["ok"]
    assert found["outputs"]["max_error"] < 1e-9
    assert found["gradients"]["max_error"] < 1e-9
    assert found["gradients"]["unused"] == []
