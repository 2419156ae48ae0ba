"""The text of a step: it is Python, it runs, and it computes and sends what the program does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shardlang.graph.code import code_of
from shardlang.graph.code_names import short_name, tail_of
from shardlang.ir.accumulated import mesh_at
from shardlang.ir.node import returned_nodes
from shardlang.ir.step import StepProgram, collectives_of
from shardlang.runtime.simulate_step import GraphSimulator, StepSimulator
from tests.commands import ROOT
from tests.graph.run_code import Each, Running
from tests.graph.test_graph import same_as_fixture
from tests.graph.test_step_picture import ACCUMULATED, AGAIN, HELD, step, untrained
from tests.plan.plans import FSDP, SP, STACK, TP, compiled

MODELS = Path(__file__).parent.parent / "step" / "models.py"


def of_model(name: str, rest: str) -> str:
    """A spec of one of the odd models of the step's tests."""
    return f'mesh {{ dp = 2 tp = 2 }}\nmodel "{MODELS}:{name}"()\n{rest}'


TEXTS = {
    "tp": TP, "sp": SP, "regather": FSDP.replace("over shard", "over shard regather"),
    "again": AGAIN, "held": HELD,
    "words": of_model("Words", 'input ids : i64[5, 3] [dp, _]\nparam "table.weight" [tp, _]'),
    "heads": of_model(
        "Heads", 'input x : f32[3, 5, 10] [dp, _, _]\nparam "into.weight" [tp(3), _]'
    ),
    "pictures": of_model("Pictures", "input x : f32[2, 3, 9, 8] [_, _, tp, _]"),
    "written": of_model("Written", 'input x : f32[5, 6] [dp, _]\nparam "up.weight" [tp, _]'),
    "routed": f'use "{ROOT}/examples/moe/routed.shard"',
    "turning": of_model("Turning", 'input x : f32[5, 6] [dp, _]\nparam "up.weight" [tp, _]'),
}  # fmt: skip


def values_of(program: StepProgram, sim: StepSimulator) -> dict[str, list[Tensor]]:
    """Numbers for all leaves."""
    torch.manual_seed(5)
    found: dict[str, list[Tensor]] = {}
    for leaf in program.leaves:
        shape = leaf.layout.shape
        full = torch.randn(shape) if leaf.dtype.is_floating_point else torch.randint(0, 3, shape)
        found[leaf.name] = sim.place(full.to(leaf.dtype), leaf.gathered or leaf.layout)
    return found


def ones(program: StepProgram, sim: StepSimulator) -> list[list[Tensor]]:
    """Gradients of the results that a backward starts from."""
    layouts = {result.name: result for result in program.results}
    made = [layouts[name] for name in program.cotangents]
    return [sim.place(torch.ones(one.layout.shape, dtype=one.dtype), one.layout) for one in made]


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_computes_and_sends_what_the_program_does(name: str) -> None:
    """Results and gradients of all devices, bit for bit; every collective in its place."""
    program = step(TEXTS[name]).step
    sim = StepSimulator(program)
    given, cotangents = values_of(program, sim), ones(program, sim)
    torch.manual_seed(7)
    by_name = dict(zip(program.cotangents, cotangents, strict=True))
    results, gradients = sim.run(given, by_name)
    running = Running(code_of(compiled(TEXTS[name])), program.mesh, program.graph.nodes)
    torch.manual_seed(7)
    made, saved = running("forward", *(Each(given[leaf.name]) for leaf in program.leaves))
    back = running("backward", *saved, *(Each(one) for one in cotangents))
    assert running.todo == [] and running.sent
    wanted = [*results, *gradients.values()]
    for own, want in zip([*made, *back], wanted, strict=True):
        pairs = zip(own.values, want, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_text_of_an_update_runs() -> None:
    """Every device's parts become the values of all."""
    update = step(HELD).update
    assert update is not None
    nodes = list(update.graph.nodes)
    sim = GraphSimulator(update.mesh, update.graph)
    layouts = {leaf.name: leaf for leaf in step(HELD).step.leaves}
    own = [layouts[name] for name in update.names]
    torch.manual_seed(5)
    values = [[torch.zeros(leaf.layout.shape) for _ in sim.coords] for leaf in own]
    place = StepSimulator(step(HELD).step).place
    full = [torch.randn(leaf.layout.shape) for leaf in own]
    parts = [place(one, leaf.layout) for one, leaf in zip(full, own, strict=True)]
    running = Running(code_of(compiled(HELD)), update.mesh, nodes)
    assert running("update", *map(Each, values), *map(Each, parts)) is None
    assert running.todo == []
    for shards, want in zip(values, full, strict=True):
        assert all(torch.equal(one, want) for one in shards)


def test_microbatches_have_functions_of_their_own() -> None:
    text, whole = code_of(compiled(ACCUMULATED)), step(ACCUMULATED)
    assert whole.accumulated is not None
    defined = [one.name for one in ast.parse(text).body if isinstance(one, ast.FunctionDef)]
    assert defined == ["forward", "backward", "finish", "reduce", "step"]
    assert "grad_layers_0_up_weight_part," in text
    reduce, axis = whole.accumulated.reduce, whole.accumulated.axis
    mesh, nodes = mesh_at(whole.step.mesh, axis, 0), list(reduce.graph.nodes)
    torch.manual_seed(5)
    given = [
        [torch.randn(sent.src.local_shape(at)) for at in mesh.coords()]
        for node in reduce.graph.find_nodes(op="placeholder")
        for bucket in node.users
        for x, sent in collectives_of(bucket)
        if x is node
    ]
    sim = GraphSimulator(mesh, reduce.graph)
    wanted = sim.execute(given)
    running = Running(text, mesh, nodes)
    made = running("reduce", *map(Each, given))
    for own, node in zip(made, returned_nodes(reduce.graph), strict=True):
        assert all(map(torch.equal, own.values, wanted[node]))
    assert running.sent == ["all_reduce"] and running.todo == []


@pytest.mark.parametrize("name", ["tp", "fsdp", "accumulated"])
def test_code(name: str) -> None:
    text = {"tp": TP, "fsdp": FSDP, "accumulated": ACCUMULATED}[name]
    same_as_fixture(f"{name}.py.txt", code_of(compiled(text)))


def test_a_model_that_is_not_trained_has_a_forward_alone() -> None:
    text = code_of(untrained())
    assert [one.name for one in ast.parse(text).body if isinstance(one, ast.FunctionDef)] == [
        "forward"
    ]


def test_gathered_parameters_are_freed_in_the_text() -> None:
    text = code_of(compiled(TEXTS["regather"]))
    for name in ("gathered", "gathered_again"):
        assert len(re.findall(rf"    del .*\blayers_1_down_weight_{name}\b", text)) == 1


def test_variables_are_called_after_modules() -> None:
    assert tail_of("model.layers.3.self_attn.q_proj") == "layers_3_q_proj"
    assert tail_of("h.0.moe.experts.2.up") == "experts_2_up" and tail_of("") == ""
    assert short_name("weight") == "weight" and short_name("up.0.bias") == "up_0_bias"
    text = code_of(compiled(STACK))
    assert "    layers_1_up = aten.linear(" in text and "grad_layers_1_up = aten." in text
