"""Specs as users write them, with models beside them: read, bound and proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broad import sampled
from tests.commands import document, shardlang

HERE = Path(__file__).parent / "specs"
TODAY = (
    "01_llama_sp", "02_hsdp", "03_gspmd2d", "05_vit", "06_t5", "07_gpt2", "08_two_tower",
)  # fmt: skip


@pytest.mark.parametrize("name", sampled(TODAY, ("02_hsdp", "05_vit", "08_two_tower")))
def test_it_computes_the_same(name: str) -> None:
    status, out, err = shardlang("check", HERE / f"{name}.shard")
    assert status == 0, out + err
    found = document("verify", HERE / f"{name}.shard")
    assert found["ok"]
    assert max(found["outputs"]["max_error"], found["gradients"]["max_error"]) < 1e-9
