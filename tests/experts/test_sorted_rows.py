"""Grouped products of sorted rows: PyTorch's own, and that of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import document

MODEL = Path(__file__).with_name("sorted_rows.py")
LAYOUTS = {"experts": "[ep, _, _]", "columns": "[_, _, ep]", "rows": "[_, ep, _]"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fallback", ["True", "False"])
def test_they_are_proven(fallback: str, layout: str, tmp_path: Path) -> None:
    if fallback == "True":
        pytest.importorskip("transformers.integrations.moe")
    path = tmp_path / "sorted.shard"
    path.write_text(
        f'mesh {{ dp = 2 ep = 2 }}\nmodel "{MODEL}:build"(fallback = {fallback.lower()})\n'
        f'input x : f32[11, 16] [dp, _]\nparam "{{up,down}}" {LAYOUTS[layout]}\n'
    )
    found = document("verify", path)
    assert found["outputs"]["max_error"] < 1e-9
    assert found["gradients"]["max_error"] < 1e-9
    assert found["gradients"]["count"] == 4
