"""The text of a stage: it runs, and computes what the device of the stage does."""

from __future__ import annotations

import ast
from functools import cache

import pytest
import torch
from staged import program
from torch import Tensor

from shardlang.compiler.driver import CompileError
from shardlang.compiler.pipelined import Pipelined, pipelined
from shardlang.cost.shapes import shapes_of
from shardlang.ir.accumulated import MeshAt, mesh_at
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import nodes_of
from shardlang.runtime.simulate_step import GraphSimulator
from tests.graph.run_code import Each, Running

STAGES = {"1f1b": 4, "zbv, tp": 4, "interleaved, stored": 4}


@cache
def made_of(name: str) -> Pipelined:
    return pipelined(program(name).compiled)


@cache
def text_of(name: str, stage: int) -> str:
    return program(name).code(stage=stage)


def functions(text: str) -> list[str]:
    return [one.name for one in ast.parse(text).body if isinstance(one, ast.FunctionDef)]


def given_to(made: Pipelined, stage: StageProgram, mesh: MeshAt) -> list[list[Tensor]]:
    """Numbers for all that a stage takes, on every device."""
    torch.manual_seed(5)
    placeholders = stage.step.graph.find_nodes(op="placeholder")
    leaves = {leaf.node: leaf for leaf in stage.step.leaves}
    received = [node.name for node in placeholders if node.name in stage.gradients]
    found = []
    for node in placeholders:
        if node.name in received:
            shape, dtype = shapes_of(made.step.whole.main, received, next(mesh.coords()))[node.name]
            found.append([torch.randn(shape, dtype=dtype) for _ in mesh.coords()])
        elif node.name in leaves:
            leaf = leaves[node.name]
            shapes = [(leaf.gathered or leaf.at_rest).local_shape(at) for at in mesh.coords()]
            found.append([_filled(shape, leaf.dtype) for shape in shapes])
        else:
            loss = made.step.whole.loss
            found.append([torch.ones((), dtype=loss.dtype) for _ in mesh.coords()])
    return found


def _filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(1, 3, shape).to(dtype)


@pytest.mark.parametrize(
    ("name", "number"), [("1f1b", 1), ("1f1b", 3), ("zbv, tp", 0), ("zbv, tp", 2), ("zbv, tp", 3)]
)
def test_the_text_computes_and_sends_what_the_stage_does(name: str, number: int) -> None:
    """Bit for bit, a backward in two parts too; every collective in its place."""
    made = made_of(name)
    stage, whole = made.step.stages[number], made.step.whole
    mesh = mesh_at(whole.main.mesh, whole.axis, 0)
    given = given_to(made, stage, mesh)
    torch.manual_seed(7)
    wanted = GraphSimulator(mesh, stage.step.graph).execute(given)
    halves = any(a.work is Work.INPUT and a.stage == number for a in made.schedule)
    works = (Work.INPUT, Work.WEIGHT) if halves else (Work.BACKWARD,)
    nodes = [node for work in (Work.FORWARD, *works) for node in nodes_of(stage, work)]
    running = Running(text_of(name, number), mesh, nodes)
    values = list(map(Each, given))
    leaves, seeds = values[: len(stage.step.leaves)], values[len(stage.step.leaves) :]
    torch.manual_seed(7)
    results, saved = running("forward", *leaves)
    _same(results, [wanted[node] for node in stage.step.returned[0]])
    gradients = [wanted[node] for node in stage.step.returned[1]]
    if not halves:
        _same(running("backward", *saved, *seeds), gradients)
    else:
        late = set(nodes_of(stage, Work.WEIGHT))
        early, kept = running("backward_inputs", *saved, *seeds)
        _same(early, [wanted[node] for node in stage.step.returned[1] if node not in late])
        rest = running("backward_weights", *kept)
        _same(rest, [wanted[node] for node in stage.step.returned[1] if node in late])
    assert running.todo == []


def _same(found: tuple[Each, ...], wanted: list[list[Tensor]]) -> None:
    for own, want in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own.values, want, strict=True))


@pytest.mark.parametrize("name", STAGES)
def test_the_actions_are_those_of_the_schedule(name: str) -> None:
    made = made_of(name)
    for number in range(STAGES[name]):
        text = text_of(name, number)
        (listed,) = (
            ast.literal_eval(one.value)
            for one in ast.parse(text).body
            if isinstance(one, ast.Assign)
        )
        row = made.schedule.ranks[made.schedule.rank_of()[number]]
        own = [action for action in row if action.stage == number]
        assert [Action(number, Work(work), at) for work, at in listed] == own
        stage = made.step.stages[number]
        sends = sum(map(len, (*stage.gives.values(), *stage.returns.values())))
        assert text.count("            send(") == sends
        assert text.count(" = receive(") >= len(stage.values) + len(stage.gradients)


def test_a_stage_has_the_functions_that_it_runs() -> None:
    assert functions(text_of("zbv, tp", 1)) == [
        "early", "forward", "backward_inputs", "backward_weights", "finish", "reduce", "step",
    ]  # fmt: skip
    assert "backward" in functions(text_of("1f1b", 2))
    assert text_of("1f1b", 2).startswith(
        "# mesh microbatch = 4, pp = 4: stage 2 of 4; the device at pp = 2 runs this"
    )


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [
        ("1f1b", None, "the pipeline has 4 stages, and each has a text of its own"),
        ("1f1b", 4, "the pipeline has 4 stages, and `4` is none of them"),
        ("plain", 0, "the spec has no pipeline"),
    ],
)
def test_which_stage_is_to_be_said(name: str, stage: int | None, said: str) -> None:
    with pytest.raises(CompileError) as found:
        program(name).code(stage=stage)
    (one,) = found.value.diagnostics
    assert (one.code, one.message) == ("SH0108", said)
