"""The step through compiled regions: the numbers, the memory, and what is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from called import Net, Pair, refusal, rows
from spawn import spawn

from shardlang.runtime.module import held

REGIONS = {
    "stored": (22, 10),
    "again": (17, 10),
    "tensor": (23, 11),
    "routed": (6, 6),
    "heads": (5, 4),
}
"""How many regions stand in the two halves of a model, and in a forward; how many differ."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawn("compiled_on_ranks:everything", 2, tmp_path_factory.mktemp("ranks"), 200)


@pytest.mark.parametrize("name", REGIONS)
def test_the_numbers_are_those_of_the_plain_model(ran: list[dict[str, Any]], name: str) -> None:
    for found in ran:
        assert found[name]["gap"] < 1e-12


def test_microbatches_too(ran: list[dict[str, Any]]) -> None:
    assert all(found["accumulated"] < 1e-12 for found in ran)


@pytest.mark.parametrize("name", REGIONS)
def test_alike_layers_are_compiled_once_without_a_break(
    ran: list[dict[str, Any]], name: str
) -> None:
    for found in ran:
        assert found[name]["regions"] == REGIONS[name]
        assert found["breaks"] == {}


def test_what_is_compiled_draws_nothing_and_sends_nothing(ran: list[dict[str, Any]]) -> None:
    for name in REGIONS:
        ops = " ".join(ran[0][name]["ops"])
        assert not [word for word in ("bernoulli", "rand", "record", "wait") if word in ops], name


def test_no_more_bytes_are_alive_than_op_by_op(ran: list[dict[str, Any]]) -> None:
    for found in ran:
        plain, compiled = found["peaks"]
        assert compiled <= plain


def test_what_one_rank_cannot_compile_is_refused_on_all(ran: list[dict[str, Any]]) -> None:
    """The ranks end the half together: none waits for another, and the next step says it too."""
    for found in ran:
        for code, words in found["failing"]:
            assert code == "SH0644"
            assert words.startswith("rank 1 failed: a part of the step cannot be compiled: File")


ALONE = "mesh {{ d = {n} }}\ninput x, y : f64[5, 6] [d, _]\n"


@pytest.fixture(scope="module")
def alone() -> Pair:
    """A module on a mesh of one device, with batch norm and dropout."""
    return Pair(ALONE, Net)


def test_inductor_compiles_what_is_loaded_to_be_compiled(alone: Pair) -> None:
    module, batch = alone.program.load(seed=1, compile=True).eval(), rows(5)
    with torch.no_grad():
        made = module(**batch)["z"]
    torch.testing.assert_close(made, alone.plain.eval()(**batch)["z"], rtol=1e-12, atol=1e-12)
    alone.plain.train()
    own = held(module).backends.own
    assert own is not None
    assert own.compiled == 1


def test_memory_that_lies_otherwise_is_read_right(alone: Pair) -> None:
    """A region is compiled for inputs as they lie at first; other ones are laid out so."""
    alone.run = torch.compile(alone.module, backend="aot_eager")
    assert alone.step(rows(5)) < 1e-12
    turned = {name: x.T.contiguous().T for name, x in rows(5, 3).items()}
    assert alone.step(turned) < 1e-12
    with torch.no_grad():
        for model in alone.both():
            model.get_parameter("up.weight").data = torch.ones(6, 8).double().cumsum(0).sin().T
    assert alone.step(rows(5)) < 1e-12


def test_one_graph_is_refused(alone: Pair) -> None:
    run = torch.compile(alone.module, backend="aot_eager", fullgraph=True)
    code, words = refusal(lambda: run(**rows(5)))
    assert code == "SH0644"
    assert "`fullgraph=True` asks for one graph | leave `fullgraph` out" in words


def test_a_backend_that_fails_is_named(alone: Pair) -> None:
    def failing(*_: object) -> Any:
        raise FileNotFoundError("no c++")

    code, words = refusal(lambda: torch.compile(alone.module, backend=failing)(**rows(5)))
    assert code == "SH0644"
    assert "FileNotFoundError: no c++ | load the program without `compile`" in words


def test_a_compiled_step_is_loaded_and_not_wrapped(alone: Pair) -> None:
    program = alone.program
    program.load(seed=1)
    run = torch.compile(program.step, backend="aot_eager")
    code, words = refusal(lambda: run(rows(5)))
    assert code == "SH0644"
    assert "`load(compile=True)`" in words
    assert program.step(rows(5)).finite


def test_what_is_no_truth_value_is_refused(alone: Pair) -> None:
    backend: Any = "inductor"
    with pytest.raises(TypeError, match="write `compile=True` for inductor"):
        alone.program.load(compile=backend)
