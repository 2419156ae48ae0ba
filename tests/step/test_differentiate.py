"""The backward that is written out gives the gradients of the model itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.ir.node import info
from shardlang.ir.program import differentiable
from shardlang.passes.step.differentiate import differentiate
from shardlang.spec import load_spec_text
from shardlang.vjp import trace
from tests.step.prove import Proof, Subject, prove

MODELS = Path(__file__).with_name("models.py")
EXPERTS = MODELS.parent.parent / "experts" / "models.py"


@dataclass(frozen=True, slots=True)
class Case:
    """A model laid out; `recorded` are the ops that are not written out."""

    name: str
    lines: str
    recorded: dict[str, int]
    file: Path = MODELS


CASES = (
    Case(
        "Words",
        'mesh { dp = 2 tp = 3 }\ninput ids : i64[5, 7] below 11 [dp, _]\nparam "table.*" [tp, _]',
        {},
    ),
    Case(
        "Words",
        'mesh { dp = 2 tp = 4 }\ninput ids : i64[5, 7] below 11 [_, dp]\nstore "**" over tp',
        {},
    ),
    Case(
        "Heads",
        "mesh { dp = 2 tp = 3 }\ninput x : f32[3, 4, 10] [dp, _, _]\n"
        'param "into.weight" [tp, _]\nparam "out.weight" [_, tp]',
        {},
    ),
    Case(
        "Biased",
        "mesh { dp = 2 tp = 3 }\ninput x : f32[3, 5, 10] [dp, _, _]\n"
        'param "into.weight" [tp, _]\nparam "out.weight" [_, tp]\nparam "bias" [tp, _, _]',
        {"scaled_dot_product_attention": 2},
    ),
    Case("Turning", 'mesh { dp = 3 }\ninput x : f32[5, 6] [dp, _]\nstore "**" over dp', {}),
    Case("Sliced", "mesh { dp = 2 }\ninput x : f32[5, 6] [dp, _]", {}),
    Case(
        "Sliced",
        'mesh { dp = 2 tp = 4 }\ninput x : f32[5, 6] [dp, _]\nparam "packed.*" [tp, ...]',
        {"select_here": 2},
    ),
    Case("Memory", "mesh { dp = 2 }\ninput x : f32[5, 3, 5] [dp, _, _]", {}),
    Case(
        "Pictures",
        "mesh { a = 2 b = 2 }\ninput x : f32[3, 3, 14, 12] [a, _, b, _]",
        {},
    ),
    Case(
        "Written",
        'mesh { dp = 2 tp = 3 }\ninput x : f32[5, 6] [dp, _]\nparam "up.*" [tp, ...]\n'
        'buffer "mean" [tp]',
        {"run_totals": 1},
    ),
    Case(
        "experts",
        'mesh { ep = 2 }\ninput x : f32[7, 6] [ep, _]\nparam "up" [ep, _, _]\n'
        'param "down" [ep, _, _]\nloss loss',
        {"grouped_mm_here": 2, "split_with_sizes": 1, "silu": 1, "mul.Tensor": 1},
        EXPERTS,
    ),
)


def compiled(case: Case) -> Compiled:
    """A case, compiled."""
    text = f'model "{case.file}:{case.name}"\n{case.lines}\n'
    spec, found = load_spec_text(text, str(MODELS.with_name("case.shard")))
    assert spec is not None, found
    return compile_spec(spec)


def proof(case: Case) -> Proof:
    """The proof of a case."""
    return prove(Subject.of(compiled(case)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.lines.split('}')[0]}")
def test_results_and_gradients_are_those_of_the_model(case: Case) -> None:
    made = proof(case)
    assert made.worst < 1e-12, made.errors
    assert dict(made.recorded) == case.recorded


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=lambda case: case.name)
def test_values_keep_their_names_and_equal_calls_are_traced_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = compiled(case).program
    trained, ends = [x.name for x in program.leaves if x.trainable], differentiable(program)
    step = differentiate(program, trained, ends, ends)
    known = {n.name: info(n) for n in program.graph.nodes if n.op != "output"}
    for node in step.graph.nodes:
        if node.name in known:
            assert info(node).layout == known[node.name].layout, node
            assert not info(node).backward, node
    monkeypatch.setattr(trace, "trace", None)
    differentiate(program, trained, ends[:1], ends)


def test_gradients_of_slices_that_fill_a_value_are_put_together() -> None:
    program = compiled(next(case for case in CASES if case.name == "Sliced")).program
    ends = differentiable(program)
    step = differentiate(program, ["packed.weight", "scale"], ends, ends)
    made = Counter(str(n.target) for n in step.graph.nodes if info(n).backward)
    # the two that are turned, the three of `three`, and those of the parameter, two of one index
    assert made["aten.cat.default"] == 3 and made["aten.select_backward.default"] == 0
    # two leave a gap, one of them with steps, and two overlap
    assert made["aten.slice_backward.default"] == 4
