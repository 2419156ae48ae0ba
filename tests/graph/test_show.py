"""A program in a notebook and at a prompt: nothing raises, with Graphviz and without."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import shardlang
from tests.commands import ROOT
from tests.commands import shardlang as command

SPEC = ROOT / "examples" / "megatron_mlp" / "mlp.shard"


@pytest.fixture(scope="module")
def program() -> shardlang.Program:
    return shardlang.compile(SPEC)


def graphviz(folder: Path, script: str) -> str:
    """A folder for PATH with a `dot` that is this script."""
    (folder / "dot").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "dot").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_repr_says_what_it_is(program: shardlang.Program) -> None:
    text = repr(program)
    assert text.startswith("<Program of mlp.shard on dp=2, tp=2; 4 devices: 4 calls sending 10.1")


def test_without_graphviz_there_is_text(
    program: shardlang.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program._repr_svg_() is None
    shown = program._repr_html_()
    assert shown.startswith("<pre>mesh  dp = 2 (data), tp = 2: 4 devices")
    assert "<summary>the graph as DOT text" in shown
    assert "digraph" in shown and " -&gt; " in shown


@pytest.mark.parametrize("script", ["exit 1", "echo '<svg>drawn</svg>'"])
def test_the_picture_stands_below_the_plan(
    program: shardlang.Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    monkeypatch.setenv("PATH", graphviz(tmp_path, f"cat > /dev/null; {script}"))
    fails = script == "exit 1"
    assert (program._repr_svg_() is None) == fails
    assert program._repr_html_().endswith("</details>" if fails else "<svg>drawn</svg>\n")


def test_a_large_picture_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", graphviz(tmp_path, "cat > /dev/null"))
    monkeypatch.setattr("shardlang.cli.graph._MANY", 3)
    _, _, said = command("graph", str(SPEC), "--no-factored", "-o", str(tmp_path / "x.svg"))
    assert "arrows, which may take minutes; layers that are alike are drawn once without" in said
    _, _, said = command("graph", str(SPEC), "--no-factored", "-o", str(tmp_path / "x.dot"))
    assert "minutes" not in said


class Counting(nn.Module):
    """A model with a buffer, which torch cannot copy while it records."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.up(x) * self.scale).square().mean()


def test_a_model_that_is_handed_in_compiles_without_a_word(tmp_path: Path) -> None:
    """torch logs a traceback before it raises what the compiler then deals with."""
    spec = tmp_path / "x.shard"
    spec.write_text("mesh { dp = 2 }\ninput x : f32[4, 8] [dp, _]\n")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        made = shardlang.compile(spec, model=Counting(), example_inputs={"x": torch.randn(4, 8)})
    finally:
        logger.removeHandler(handler)
    assert not records
    assert made.verify().ok
