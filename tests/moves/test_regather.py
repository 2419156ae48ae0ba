"""Programs whose values change blocks or are gathered again: proven, and right on processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spawn import spawn

from shardlang.api import Program
from shardlang.compiler.driver import compile_spec
from shardlang.ir.collective import Kind
from shardlang.ir.node import info, set_info
from shardlang.ir.reshard import Reshard
from shardlang.ir.step import StepProgram, collectives_of, is_collective
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step import write_step
from shardlang.passes.step.regather import regather
from tests.moves.models import SPECS, spec_of

AGAIN = [name for name in SPECS if name.startswith("regather")]


def program(text: str) -> Program:
    """The compiled spec."""
    return Program(compile_spec(spec_of(text)))


def test_on_processes_the_losses_are_those_of_the_plain_model(tmp_path: Path) -> None:
    ranks = spawn("tests.moves.losses:losses", 2, tmp_path, 240)
    for found in ranks:
        assert found.pop("changed too soon") == ([], [1.0])
        assert found.keys() == SPECS.keys()
        for name, (mine, plain) in found.items():
            assert len(set(plain)) == len(plain), name
            assert mine == pytest.approx(plain, rel=1e-12, abs=0), name


@pytest.mark.parametrize("name", SPECS)
def test_they_are_proven(name: str) -> None:
    found = program(SPECS[name])
    report = found.verify()
    assert report.ok, report.first
    assert report.gradients
    assert max(report.gradients.values()) < 1e-12
    reshards = [s for n in found.local.graph.nodes for s in n.args if isinstance(s, Reshard)]
    marked = any(info(node).regather for node in found.local.graph.nodes)
    if name.startswith("recompute"):
        assert found.local.step.recompute.values
        return
    assert (
        marked
        if name in AGAIN
        else any(reshard.forward.kind is Kind.PERMUTE for reshard in reshards)
    )


def test_the_proof_sees_what_is_gathered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gather for the backward that gathers another value than the one of the forward."""

    def losing(step: StepProgram, options: StepOptions) -> StepProgram:
        gathers = [n for n in regather(step, options).graph.nodes if is_collective(n)]
        for node in (n for n in gathers if info(n).backward and "all_gather" in info(n).change):
            for source, _ in collectives_of(node):
                with step.graph.inserting_before(node):
                    other = step.graph.call_function(torch.neg, (source,))
                set_info(other, info(node))
                node.replace_input_with(source, other)
        return step

    passes = tuple(losing if one is regather else one for one in write_step.STEP_PASSES)
    monkeypatch.setattr(write_step, "STEP_PASSES", passes)
    assert not program(SPECS["regather, complex"]).verify().ok


STORED = """
mesh { dp = 2 tp = 2 }
model "tests/moves/models.py:rotated"(how = "complex")
input x : f64[6, 6] [dp, _]
input target : f64[6, 4] [dp, _]
store "**" over ORDER regather
"""


@pytest.mark.parametrize("order", ["dp*tp", "tp*dp", "dp"])
def test_stored_over_several_axes(order: str) -> None:
    assert program(STORED.replace("ORDER", order)).verify().ok
