"""Every pass on the step program alone: the text before it and the text after it.

A case is one file in `tests/step/fixtures/<pass>/`: what it shows as a comment, the forward program
(`== program`), its step before the pass (`== before`) and after it (`== after`); `== options` gives
what the spec asks of the passes. SHARDLANG_UPDATE=1 writes before and after anew.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import Recompute, StepOptions
from shardlang.ir.step_text import step_text
from shardlang.passes.graph_text import read_graph
from shardlang.passes.rewrite.localize import to_program
from shardlang.passes.step.write_step import NAMES, write_step
from tests.passes.test_fixtures import sections

FIXTURES = Path(__file__).with_name("fixtures")
CASES = sorted(FIXTURES.glob("*/*.txt"))


def program_of(case: dict[str, str]) -> LocalProgram:
    """The forward program of a case, with its options."""
    made = to_program(read_graph(case["program"]))
    pairs = dict(line.split(" = ") for line in case.get("options", "").splitlines())
    values = {key: ast.literal_eval(value) for key, value in pairs.items()}
    again = Recompute(values=tuple(values.get("recompute", ())))
    made.step = StepOptions(values.get("prefetch"), again)
    return made


def step_after(program: LocalProgram, last: str) -> StepProgram:
    """The step of a program after one of its passes."""
    trained = [leaf.name for leaf in program.leaves if leaf.trainable]
    ends = differentiable(program)
    return write_step(program, trained, [program.loss] if program.loss in ends else ends, last)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_pass(path: Path) -> None:
    case, place = sections(path), NAMES.index(path.parent.name)
    program = program_of(case)
    states = {"before": place - 1, "after": place}
    found = {
        title: step_text(step_after(program, NAMES[number]), program.step)
        for title, number in states.items()
        if number >= 0
    }
    if os.environ.get("SHARDLANG_UPDATE"):
        write(path, {**case, **found})
    assert found == {title: text for title, text in case.items() if title in states}


def write(path: Path, case: dict[str, str]) -> None:
    """Write a case anew, its comment first."""
    head = path.read_text().partition("== ")[0].rstrip()
    parts = [head, *(f"== {title}\n{text}" for title, text in case.items())]
    path.write_text("\n\n".join(parts) + "\n")


def test_every_pass_has_a_case() -> None:
    assert {path.parent.name for path in CASES} == set(NAMES)
