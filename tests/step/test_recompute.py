"""What is computed again is the same: results and gradients are those of the model, to the bit."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, fx

from shardlang.compiler.driver import CompileError, compile_spec
from shardlang.ir.graph import is_item
from shardlang.ir.node import info, set_info
from shardlang.ir.program import LocalProgram
from shardlang.ir.step import StepProgram, collectives_of, is_collective, record
from shardlang.ir.step_options import NO_OPTIONS
from shardlang.passes.invariants.invariant import InvariantError
from shardlang.passes.step.cheap import is_cheap
from shardlang.passes.step.check_step import check_step
from shardlang.passes.step.choose import Choosing
from shardlang.passes.step.cut import Choice
from shardlang.passes.step.dropouts import draws
from shardlang.passes.step.prices import Prices
from shardlang.passes.step.regions import repeatable
from shardlang.passes.step.write_step import write_step
from shardlang.plan.collect import make_plan
from shardlang.plan.moments import Phase
from shardlang.proof.reference import Reference
from shardlang.rules.dropout import PARTS
from shardlang.runtime.step_executor import saved_by
from shardlang.spec import load_spec_text
from tests.broad import sampled
from tests.step.prove import Subject, laid_out, proof_of, simulated
from tests.step.test_differentiate import CASES, MODELS, Case

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

LAYERS = {
    "llama/sp": "model.layers.*",
    "llama/fsdp_tp": "model.layers.*",
    "gpt2/gpt2": "transformer.h.*",
    "gpt2/fast": "transformer.h.*",
}
"""Examples, and what is computed again."""


@dataclass(frozen=True, slots=True)
class Two:
    """A step that keeps everything, and one that computes some of it again."""

    program: LocalProgram
    reference: Reference
    kept: StepProgram
    again: StepProgram


@functools.cache
def two(text: str, folder: Path) -> Two:
    """Both steps of a spec."""
    spec, found = load_spec_text(text, str(folder / "case.shard"))
    assert spec is not None, found
    program, reference = laid_out(Subject.of(compile_spec(spec)))
    plain = replace(program, step=NO_OPTIONS)
    kept, again = (
        write_step(one, reference.trainable, reference.cotangents) for one in (plain, program)
    )
    return Two(program, reference, kept, again)


def example(name: str, what: str) -> Two:
    """Both steps of an example."""
    file = EXAMPLES / f"{name}.shard"
    return two(f'use "{file.name}"\nrecompute {what}\n', file.parent)


DEEP = Case(
    "Deep", "mesh { dp = 2 }\ninput x : f64[257, 8] [dp, _]", {}, MODELS.with_name("deep.py")
)


def case(name: str, number: int = 0, what: str = '"**"') -> Two:
    """Both steps of a small model, of which something is computed again."""
    found = [one for one in (*CASES, DEEP) if one.name == name][number]
    said = f"recompute {what}\n" if what else ""
    return two(f'model "{found.file}:{found.name}"\n{found.lines}\n{said}', MODELS.parent)


def backward(step: StepProgram) -> list[fx.Node]:
    """The calls of the backward."""
    return [n for n in step.graph.nodes if n.op == "call_function" and info(n).backward]


def kept_values(step: StepProgram) -> set[str]:
    """What the backward reads of the forward beside leaves."""
    leaves = {n.name for n in step.graph.find_nodes(op="placeholder")}
    return set(saved_by(step)) - leaves


def saved_bytes(step: StepProgram) -> int:
    """The bytes that the forward hands to the backward, beside leaves, on the first device."""
    replay = Prices.of(step).replay
    return sum(replay.storages[number].bytes for number in replay.saved)


def peak_of(both: Two) -> int:
    """The peak of the second step as `plan` gives it, with the state of AdamW."""
    return make_plan(both.program).memory.peak_bytes


def check(both: Two) -> None:
    """The second step computes something again, and gives what the model and the first step do."""
    assert len(backward(both.again)) > len(backward(both.kept))
    made = proof_of(both.again, both.reference)
    assert made.worst < 1e-11, made.errors
    (a, b), (c, d) = (simulated(s, both.reference) for s in (both.kept, both.again))
    assert same(a, c) and same([*b.values()], [*d.values()])


def same(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    """Whether the values of all devices are equal, bit by bit."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_an_example(name: str) -> None:
    check(example(name, f'"{LAYERS[name]}"'))


@pytest.mark.parametrize(
    ("name", "number"), [(c.name, CASES[:i].count(c)) for i, c in enumerate(CASES)]
)
def test_all_of_a_model(name: str, number: int) -> None:
    check(case(name, number))


@pytest.mark.parametrize(("name", "number"), [("Heads", 0), ("Words", 1), ("Memory", 0)])
def test_what_is_cheap(name: str, number: int) -> None:
    """Nothing else is computed again, and the backward keeps fewer bytes."""
    both = case(name, number, "selective")
    check(both)
    more = len(backward(both.again)) - len(backward(both.kept))
    named = both.program.step.recompute.values
    again = [n for n in both.kept.graph.nodes if n.name in named]
    assert 0 < more <= len(again)
    assert all(is_cheap(node) for node in again)
    assert saved_bytes(both.again) < saved_bytes(both.kept)


@pytest.mark.parametrize("part", sampled((0.9, 0.6), (0.6,)))
def test_a_budget_is_met(part: float) -> None:
    most = peak_of(case("Deep", what=""))
    both = case("Deep", what=f"to {int(most * part)}")
    check(both)
    assert part * 0.9 * most < peak_of(both) <= part * most


def test_a_budget_that_cannot_be_met_is_refused_with_the_least_peak() -> None:
    with pytest.raises(CompileError) as caught:
        case("Deep", what="to 1KiB")
    (finding,) = [found for found in caught.value.diagnostics if found.is_error]
    assert finding.code == "SH0512"
    assert finding.span.line == 4, "at the `recompute` statement"
    assert finding.help is not None
    least = re.search(r"recompute to (\d+)", finding.help)
    assert least is not None
    assert peak_of(case("Deep", what=f"to {least[1]}")) <= int(least[1])


def test_the_cut_is_the_cheapest_choice() -> None:
    """Of all sets of values that may be computed again."""
    choosing = Choosing.of(case("Deep", what="").kept, ())
    may = [n for n in repeatable(choosing.program) if choosing.prices.work(n)][:11]
    cut = choosing.cut(may)
    sets = [{n for i, n in enumerate(may) if mask >> i & 1} for mask in range(1 << len(may))]
    every = [cut.choice(one) for one in sets]
    for per_byte, per_work in ((1, 0), (1, 1), (7, 2), (100, 1), (1, 100)):
        best = min(per_byte * one.bytes + per_work * one.work for one in every)
        made = cut.cheapest(per_byte, per_work)
        assert per_byte * made.bytes + per_work * made.work == best


def test_a_cut_between_known_ones_is_that_of_the_whole_network() -> None:
    """In whatever order the prices come, equal ones included."""
    choosing = Choosing.of(case("Deep", what="").kept, ())
    may, random = repeatable(choosing.program), Random(5)
    prices = [(random.randint(1, 60), random.randint(1, 60)) for _ in range(40)]
    prices += [(1, 10**12), (10**12, 1), (7, 2), (14, 4), (1, 0)]
    random.shuffle(prices)
    cut, found = choosing.cut(may), set[Choice]()
    for price in prices:
        alone = choosing.cut(may).cheapest(*price)
        assert cut.cheapest(*price) == alone, price
        found.add(alone)
    assert len(found) > 4


def test_a_layer_leaves_what_comes_in() -> None:
    """Of the layers of a Llama nothing is kept but parameters, their results and the angles."""
    both = example("llama/sp", '"model.layers.*"')
    left = [n for n in both.again.graph.nodes if n.name in kept_values(both.again)]
    inside = [info(n).module for n in left if "model.layers." in info(n).module and not is_item(n)]
    angles = ["model.layers.0.self_attn"] * 2
    assert inside == [*angles, "model.layers.0", "model.layers.1"]
    assert len(kept_values(both.again)) < len(kept_values(both.kept)) - 20


def test_collectives_of_a_layer_are_made_again_and_gathers_of_parameters_are_not() -> None:
    def gathers(step: StepProgram) -> int:
        nodes = [n for n in backward(step) if is_collective(n) and "gather" in info(n).change]
        return sum(c.kind == "all_gather" for n in nodes for _, c in collectives_of(n))

    sequence = example("llama/sp", '"model.layers.*"')
    assert gathers(sequence.again) == gathers(sequence.kept) + 4
    stored = example("llama/fsdp_tp", '"model.layers.*"')
    assert gathers(stored.again) == gathers(stored.kept)


def test_the_plan_says_what_is_computed_again() -> None:
    both = example("llama/sp", '"model.layers.*"')
    plan = make_plan(both.program)
    again = [row for row in plan.collectives if "as `recompute` says" in row.reason]
    assert {(row.op, row.phase) for row in again} == {
        ("all_gather", Phase.BACKWARD),
        ("reduce_scatter", Phase.BACKWARD),
    }
    more = [len([*filter(is_collective, backward(s))]) for s in (both.again, both.kept)]
    assert len(again) == more[0] - more[1] == 6
    assert plan.recomputed is not None
    assert plan.recomputed.saved_bytes == saved_bytes(both.kept) - saved_bytes(both.again)
    assert plan.recomputed.flops > 0


def test_a_record_is_made_again_as_a_whole() -> None:
    both = example("vit/vit", '"**.layers.*"')
    assert [n.target for n in backward(both.again)].count(record) == 2


def test_of_a_dropout_the_mask_is_kept() -> None:
    both = example("gpt2/gpt2", '"transformer.h.*"')
    masks = {n.name for n in both.again.graph.nodes if draws(n.target) and info(n).random}
    assert len(masks) == 7
    assert masks <= kept_values(both.again)
    assert not any(draws(n.target) for n in backward(both.again) if n.target is not record)


@pytest.mark.parametrize("name", ["gpt2/gpt2", "gpt2/fast"])
def test_a_mask_that_is_drawn_again_is_seen(name: str) -> None:
    both = example(name, '"transformer.h.*"')
    step = write_step(both.program, both.reference.trainable, both.reference.cotangents)
    drawn = [n for n in step.graph.nodes if info(n).random and draws(n.target)]
    mask = next(n for n in reversed(drawn) if any(info(u).backward for u in n.users))
    readers = [u for u in mask.users if info(u).backward]
    with step.graph.inserting_before(readers[0]):
        other = step.graph.node_copy(mask)
    set_info(other, replace(info(mask), backward=True))
    if other.args[-1] is None:
        other.args = (*other.args[:2], 99, *other.args[3:])
    for reader in readers:
        reader.replace_input_with(mask, other)
    assert proof_of(step, both.reference).worst > 1e-4
    with pytest.raises(InvariantError, match="draws_once"):
        check_step(step, "planting")


X = torch.linspace(-1, 1, 48).view(4, 3, 4)


@pytest.mark.parametrize("op", [op for op in PARTS if op.__class__.__name__ == "OpOverload"])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_the_two_parts_of_a_dropout_are_the_dropout(op: Callable[..., object], p: float) -> None:
    parts, x = PARTS[op], X.clone().requires_grad_()
    torch.manual_seed(3)
    made = op(x, p, True)
    first = made[0] if isinstance(made, tuple) else made
    assert isinstance(first, Tensor)
    (gradient,) = torch.autograd.grad(first.sin().sum(), x)
    torch.manual_seed(3)
    mask = parts.mask(X, p, True)
    assert isinstance(mask, Tensor) and mask.dtype is torch.bool
    assert torch.equal(parts.thin(X, mask, p), first)
    assert torch.equal(parts.thin(first.cos(), mask, p), gradient)
