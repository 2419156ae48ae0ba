"""Each invariant of a step program finds the fault that is planted for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from shardlang.compiler.driver import compile_spec
from shardlang.ir.node import info, set_info
from shardlang.ir.program import differentiable
from shardlang.ir.step import StepProgram, is_bucket, is_collective, is_wait, started_by
from shardlang.passes.invariants.invariant import InvariantError
from shardlang.passes.step.check_step import CHECKS, check_step
from shardlang.passes.step.write_step import write_step
from tests.moves.models import spec_of

SPEC = """
mesh { dp = 2 }
model "tests/moves/models.py:rotated"(how = "real")
input x : f64[6, 6] [dp, _]
input target : f64[6, 4] [dp, _]
store "**" over dp regather
"""


def written() -> StepProgram:
    """A step program with gathers in both halves and buckets."""
    program = compile_spec(spec_of(SPEC)).program
    trained = [leaf.name for leaf in program.leaves if leaf.trainable]
    return write_step(program, trained, differentiable(program)[:1])


def same_name(step: StepProgram) -> None:
    first, second = list(step.graph.nodes)[:2]
    second.name = first.name


def read_too_early(step: StepProgram) -> None:
    nodes = [n for n in step.graph.nodes if n.op == "call_function"]
    reader = next(n for n in nodes if any(s.op == "call_function" for s in n.all_input_nodes))
    nodes[0].prepend(reader)


def read_of_the_backward(step: StepProgram) -> None:
    reader = next(n for n in step.graph.nodes if n.op == "call_function")
    source = next(n for n in reader.all_input_nodes)
    set_info(source, replace(info(source), backward=True))


def drawn_twice(step: StepProgram) -> None:
    node = next(n for n in step.graph.nodes if n.op == "call_function" and info(n).backward)
    set_info(node, replace(info(node), random=True))


def one_gradient_less(step: StepProgram) -> None:
    step.gradients = step.gradients[1:]


def a_collective_less(step: StepProgram) -> None:
    node = next(n for n in step.graph.nodes if is_collective(n) and is_bucket(n))
    values, collectives, stream = node.args
    assert isinstance(collectives, tuple)
    node.args = (values, collectives[1:], stream)


def a_handle_read(step: StepProgram) -> None:
    wait = next(n for n in step.graph.nodes if is_wait(n))
    reader = next(iter(wait.users))
    reader.replace_input_with(wait, started_by(wait))


def narrow_parameters(step: StepProgram) -> None:
    step.wide = torch.float32
    step.leaves = tuple(replace(leaf, dtype=torch.bfloat16) for leaf in step.leaves)


FAULTS: dict[str, Callable[[StepProgram], None]] = {
    "names_unique": same_name,
    "values_there": read_too_early,
    "forward_alone": read_of_the_backward,
    "draws_once": drawn_twice,
    "ends_match": one_gradient_less,
    "buckets_match": a_collective_less,
    "starts_waited": a_handle_read,
    "sums_wide": narrow_parameters,
}


def test_every_invariant_has_a_fault() -> None:
    assert [check.__name__ for check in CHECKS] == list(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name: str) -> None:
    step = written()
    FAULTS[name](step)
    with pytest.raises(InvariantError, match=f"^after planting, {name}: "):
        check_step(step, "planting")
