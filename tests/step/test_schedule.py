"""Where starts and waits stand, that nothing else changes, and that faults in them are found."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import spawn
from torch import Tensor, fx

from shardlang.compiler.driver import compile_spec
from shardlang.ir.node import info, set_info
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.spare import reduces_in_place
from shardlang.ir.step import (
    StepProgram,
    Stream,
    collectives_of,
    is_start,
    is_wait,
    started_by,
    stream_of,
)
from shardlang.ir.step_options import StepOptions
from shardlang.passes.invariants.invariant import InvariantError
from shardlang.passes.rewrite import gather_buckets
from shardlang.passes.step import write_step as written
from shardlang.passes.step.check_step import check_step
from shardlang.passes.step.schedule import schedule
from shardlang.passes.step.write_update import write_update
from shardlang.runtime import simulate_step
from shardlang.runtime.simulate import DeviceFault, Watch
from shardlang.runtime.simulate_step import StepSimulator
from shardlang.spec import load_spec_text
from tests.step.on_ranks import SPECS
from tests.step.timeline import Timeline

MODELS = Path(__file__).with_name("layers.py")
SPEC = f"""
mesh {{ dp = 3 }}
model "{MODELS}:Layers"(count = 3)
input x : f64[7, 5] [dp, _]
store "**" over dp regather
"""


@functools.cache
def program(text: str = SPEC) -> LocalProgram:
    """The forward program of a spec."""
    spec, found = load_spec_text(text, str(MODELS.with_name("case.shard")))
    assert spec is not None, found
    return compile_spec(spec).program


def step_of(text: str = SPEC, prefetch: int | None = None) -> StepProgram:
    """The step program of a spec."""
    made = program(text)
    made.step = StepOptions(prefetch)
    trained = [leaf.name for leaf in made.leaves if leaf.trainable]
    return written.write_step(made, trained, differentiable(made))


def text_of(step: StepProgram, stream: Stream, backward: bool) -> str:
    """Starts and waits of a stream in one half, by the order of the starts, and products between.

    `+0 -0 +1 .. -1`: two products stand between the second start and its wait.
    """
    order: dict[fx.Node, int] = {}
    found = ""
    for node in step.graph.nodes:
        if node.op != "call_function" or info(node).backward != backward:
            continue
        start = started_by(node) if is_wait(node) else node
        if is_start(start) and stream_of(start) is stream:
            number = order.setdefault(start, len(order))
            found += f" {'-' if is_wait(node) else '+'}{number} "
        elif "mm" in str(node.target) or "linear" in str(node.target):
            found += "."
    return " ".join(found.split())


def test_the_next_gather_starts_when_the_one_before_it_is_there() -> None:
    step = step_of()
    assert text_of(step, Stream.GATHERS, False) == "+0 -0 +1 .. -1 +2 .. -2 .."
    assert text_of(step, Stream.GATHERS, True) == "+0 -0 +1 .... -1 +2 .... -2 ..."


def test_a_large_first_block_is_gathered_and_reduced_in_two_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that less of it is sent beside nothing; small gathers are in flight together."""
    usual = simulated(step_of())
    monkeypatch.setattr(gather_buckets, "EARLY_BYTES", 0)
    step = step_of(SPEC + "\n")
    assert text_of(step, Stream.GATHERS, False) == "+0 +1 -0 . -1 +2 . -2 +3 .. -3 .."
    assert text_of(step, Stream.GATHERS, True) == "+0 -0 +1 .... -1 +2 .... -2 ..."
    assert text_of(step, Stream.GRADIENTS, True) == ".... +0 .... -0 +1 .. -1 +2 . -2 +3 -3"
    assert all(torch.equal(a, b) for a, b in zip(usual, simulated(step), strict=True))


def test_a_gradient_is_waited_for_when_the_next_one_starts_and_at_the_end() -> None:
    assert text_of(step_of(), Stream.GRADIENTS, True) == ".... +0 .... -0 +1 ... -1 +2 -2"


def test_sums_that_take_the_place_of_gradients_are_waited_for_at_the_end() -> None:
    step = step_of(SPEC.replace('store "**" over dp regather', ""))
    assert text_of(step, Stream.GRADIENTS, True) == "........... +0 -0"


def test_as_many_gathers_are_in_flight_as_prefetch_has_bytes_for() -> None:
    layer = 8 * (5 * 7 + 7 + 7 * 5 + 5)
    two = text_of(step_of(prefetch=2 * layer), Stream.GATHERS, False)
    assert two == "+0 +1 -0 +2 .. -1 .. -2 .."
    less = text_of(step_of(prefetch=2 * layer - 1), Stream.GATHERS, False)
    assert less == "+0 -0 +1 .. -1 +2 .. -2 .."
    none = text_of(step_of(prefetch=layer - 1), Stream.GATHERS, False)
    assert none == "+0 -0 .. +1 -1 .. +2 -2 .."


def test_after_the_update_the_next_gather_is_in_flight_while_one_is_written() -> None:
    made = program(SPEC.replace('store "**" over dp regather', 'store optimizer "**" over dp'))
    graph = write_update(made, [leaf.name for leaf in made.leaves if leaf.trainable]).graph
    words = {"start_collectives": "+", "wait_collective": "-", "copy_.default": "."}
    found = [words.get(getattr(node.target, "__name__", ""), "") for node in graph.nodes]
    assert "".join(found) == "+-+....-+....-...."


TENSOR = f"""
mesh {{ tp = 2 }}
model "{MODELS}:Layers"(count = 3)
input x : f64[7, 5] [_, _]
param "layers.*.up.*" [tp, ...]
param "layers.*.down.weight" [_, tp]
"""


TENSOR = f"""
mesh {{ tp = 2 }}
model "{MODELS}:Layers"(count = 3)
input x : f64[7, 5] [_, _]
param "layers.*.up.*" [tp, ...]
param "layers.*.down.weight" [_, tp]
"""


def test_the_gradient_of_an_activation_flies_beside_that_of_the_weight() -> None:
    """The product for the weight stands between the start and the wait."""
    backward = text_of(step_of(TENSOR), Stream.ACTIVATIONS, True)
    assert backward == "... +0 . -0 ... +1 . -1 ..."


# the numbers


def simulated(step: StepProgram, watch: Watch | None = None) -> list[Tensor]:
    """Results and gradients on all devices."""
    sim, values = StepSimulator(step, watch), dict[str, list[Tensor]]()
    torch.manual_seed(3)
    for leaf in step.leaves:
        values[leaf.name] = sim.place(torch.randn(leaf.layout.shape).to(leaf.dtype), leaf.layout)
    ones = {
        name: [torch.ones((), dtype=torch.float64)] * len(sim.coords) for name in step.cotangents
    }
    results, gradients = sim.run(values, ones)
    return [x for shards in (*results, *gradients.values()) for x in shards]


def unscheduled(text: str, monkeypatch: pytest.MonkeyPatch) -> StepProgram:
    """The step program without starts and waits."""
    passes = tuple(one for one in written.STEP_PASSES if one is not schedule)
    with monkeypatch.context() as patch:
        patch.setattr(written, "STEP_PASSES", passes)
        return step_of(text)


@pytest.mark.parametrize("text", [SPEC, SPEC.replace("regather", ""), TENSOR])
def test_results_are_bitwise_those_without(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = unscheduled(text, monkeypatch)
    assert not any(is_start(node) for node in plain.graph.nodes)
    for prefetch in (None, 0, 1 << 30):
        pairs = zip(simulated(plain), simulated(step_of(text, prefetch)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_write_between_start_and_wait_is_found() -> None:
    step = step_of()
    start = next(n for n in step.graph.nodes if is_start(n) and info(n).backward)
    (written_to, _), *_ = collectives_of(start)
    with step.graph.inserting_after(start):
        step.graph.call_function(torch.ops.aten.zero_.default, (written_to,))
    with pytest.raises(DeviceFault, match="written before it was waited for"):
        simulated(step)


def in_place(step: StepProgram) -> list[fx.Node]:
    """The all-reduces of the backward that put the sum into the memory of what they add up."""
    return [n for n in step.graph.nodes if info(n).backward and reduces_in_place(n)]


def test_a_sum_of_what_nothing_else_reads_is_made_in_place() -> None:
    """Of the gradients of two activations the first; the second is added to another one too."""
    step = step_of(TENSOR)
    (start,) = in_place(step)
    (operand, _), *_ = collectives_of(start)
    with step.graph.inserting_before(start):
        reader = step.graph.call_function(torch.ops.aten.neg.default, (operand,))
    assert in_place(step) == []
    step.graph.erase_node(reader)
    assert in_place(step) == [start]


def test_who_reads_what_a_sum_has_taken_the_place_of_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = step_of(TENSOR)
    (start,) = in_place(step)
    (operand, _), *_ = collectives_of(start)
    wait = next(iter(start.users))
    gradient = next(n for n in step.returned[1] if operand not in n.all_input_nodes)
    with step.graph.inserting_before(step.graph.output_node()):
        late = step.graph.call_function(torch.ops.aten.mean.default, (operand,))
        changed = step.graph.call_function(torch.ops.aten.add.Tensor, (gradient, late))
    for node in (late, changed):
        set_info(node, info(wait))
    gradient.replace_all_uses_with(changed, lambda user: user.op == "output")
    assert all(bool(x.isfinite().all()) for x in simulated(step))
    monkeypatch.setattr(simulate_step, "reduces_in_place", lambda node: node is start)
    assert not all(bool(x.isfinite().all()) for x in simulated(step))


def test_a_wait_behind_a_reader_is_found() -> None:
    step = step_of()
    wait = next(n for n in step.graph.nodes if is_wait(n))
    item = next(iter(wait.users))
    item.append(wait)
    with pytest.raises(InvariantError, match=f"values_there: `{item}` reads `{wait}`"):
        check_step(step, "planting")


@pytest.mark.parametrize(("times", "least"), [(0.5, 0.87), (1.0, 0.8)])
def test_a_step_hides_what_it_sends(
    times: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gather of a layer takes `times` as long as the forward of one; all share one link.

    What nothing can hide is the first gather of each half and the last reduction: 3 of 24 calls. At
    1.0 the link sends for longer than the products take.
    """
    text = SPEC.replace("dp = 3", "dp = 2").replace("count = 3", "count = 8")
    text = text.replace("f64[7, 5]", "f64[64, 5]")
    layer, sent = 32 * 2 * 5 * 7, 8 * (5 * 7 + 7 + 7 * 5 + 5) / 2
    plain, aside = Timeline(times * layer / sent), Timeline(times * layer / sent)
    simulated(unscheduled(text, monkeypatch), plain)
    simulated(step_of(text), aside)
    assert plain.hidden == pytest.approx(0) and aside.sending == pytest.approx(plain.sending)
    assert aside.hidden > least


# on processes


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two gloo processes found."""
    return spawn("tests.step.on_ranks:everything", 2, tmp_path_factory.mktemp("ranks"), 240)


@pytest.mark.parametrize("name", SPECS)
def test_processes_send_what_the_text_says_and_compute_the_same(
    ran: list[dict[str, Any]], name: str
) -> None:
    """Kind and bytes of each call, in their order, and how many products are made before it.

    The plan has the same calls in the same order.
    """
    for found in (rank[name] for rank in ran):
        assert found["same"] and found["norm"] > 1
        sent = [(op, size, products) for op, _, size, products in found["sent"]]
        assert sent == [(op, size, products) for op, _, size, products in found["text"]]
        plainly = [(op, stream, size) for op, stream, size, _ in found["sent plainly"]]
        assert sorted(plainly) == sorted((op, "", size) for op, size, _ in sent)
        assert [(op, size) for op, size, _ in sent] == [call[1:] for call in found["plan"]]


def test_streams_over_one_group_have_process_groups_of_their_own(ran: list[dict[str, Any]]) -> None:
    for found in ran:
        for name in ("stored", "kept"):
            streams = [("" if s == "activations" else s) for _, s, _, _ in found[name]["text"]]
            assert [stream for _, stream, _, _ in found[name]["sent"]] == streams
            assert set(streams) == {"", "gathers", "gradients"}


def test_another_order_on_one_rank_is_refused_on_all(ran: list[dict[str, Any]]) -> None:
    for found in ran:
        assert found["other order"].startswith("SH0602: rank 1 holds another program than rank 0: ")
        assert "_start" in found["other order"]
