"""What `store` splits: values, gradients or states, proven and trained on four processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stored
import torch
from counts_on_ranks import COUNTS, counted_program
from counts_on_ranks import SPECS as COUNTED
from spawn import in_two_jobs, spawn
from torch import nn
from zero_on_ranks import FEW, SPECS, STEPS, TRAINED, batch, longer, program

from shardlang.ir.mesh import Mesh
from shardlang.plan.collect import plan_of
from shardlang.plan.types import CollectiveRow
from tests.broad import sampled


@pytest.fixture(scope="module")
def ran_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """Every rank of the job that trains a spec."""

    def run(names: list[str]) -> list[Any]:
        out = tmp_path_factory.mktemp("ranks")
        job = "zero_on_ranks:everything"
        return spawn(job, 4, out, 300, prepared=2, NAMES="; ".join(names))

    return in_two_jobs(TRAINED, FEW, run)


@pytest.fixture(scope="module")
def ran(ran_with: Callable[[str], list[Any]]) -> list[Any]:
    return ran_with("ddp")


@pytest.fixture(scope="module")
def plain() -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One process: the losses, the parameters and the first state of each at the end."""
    model = stored.stacked()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for step in range(STEPS):
        loss = model(**batch(step))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    named = dict(model.named_parameters())
    states = {name: optimizer.state[p]["exp_avg"] for name, p in named.items()}
    return torch.stack(losses), {n: p.detach() for n, p in named.items()}, states


@pytest.mark.parametrize("name", SPECS)
def test_it_is_proven(name: str) -> None:
    report = program(name).verify()
    assert report.ok, report
    assert report.updates and max(report.updates.values()) < 1e-10


@pytest.mark.parametrize("name", sampled(TRAINED, FEW))
def test_twenty_steps_are_those_of_one_process(
    ran_with: Callable[[str], list[Any]], plain: Any, name: str
) -> None:
    want_losses, want, want_states = plain
    for trained, _, _ in ran_with(name):
        losses, whole, states, _ = trained[name]
        torch.testing.assert_close(losses, want_losses, rtol=1e-10, atol=0)
        for key, value in want.items():
            torch.testing.assert_close(whole[key], value, rtol=1e-9, atol=1e-11)
        for key, value in states.items():
            torch.testing.assert_close(value, want_states[key], rtol=1e-8, atol=1e-12)


def test_what_lies_at_rest(ran: list[Any]) -> None:
    """Numbers of parameters, gradients and states on the fullest rank, in parts of all of them.

    A quarter is a little more: a dim that the axis does not divide has one index more, and a number
    alone is on every rank.
    """
    total = sum(p.numel() * 8 for p in stored.stacked().parameters())
    assert _fullest(ran, "ddp") == [total, total, 2 * total - 16]
    for name, split in (("optimizer", 1), ("gradients", 1), ("regather", 0)):
        found = _fullest(ran, name)
        assert found[:split] == [total] * split
        for bytes_, whole in zip(found[split:], [total, total, 2 * total][split:], strict=True):
            assert whole / 4 <= bytes_ < whole / 4 * 1.4


def _fullest(ran: list[Any], name: str) -> list[int]:
    return [max(sizes) for sizes in zip(*(trained[name][3] for trained, _, _ in ran), strict=True)]


def test_a_loop_of_ones_own(ran: list[Any]) -> None:
    """States are saved and loaded, a gradient by hand counts, torch's own optimizer is refused."""
    model = stored.stacked()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    want = [model(**longer())["loss"]]
    want[0].backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    want = [want[0].item(), model(**batch(1))["loss"].item()]
    for _, found, _ in ran:
        assert found["again"] == found["then"] != found["first"]
        assert (found["refused"], found["added"]) == ("SH0642", "SH0606")
        assert found["popped"] == "SH0606"
        torch.testing.assert_close(*found["norms"])
        assert found["compiled"] < 1e-12
        assert found["longer"] == pytest.approx(want, rel=1e-12)


def between(row: CollectiveRow, mesh: Mesh, rank: int) -> tuple[str, tuple[int, ...]]:
    """The op of a row, and the ranks between which it is."""
    (ranks,) = (sorted(x) for x in mesh.groups(mesh.named(row.axes)) if rank in x)
    return row.op, tuple(ranks)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", COUNTED)
def test_a_step_makes_the_calls_of_its_plan(ran: list[Any], name: str, count: int) -> None:
    """Forward, backward and update, in order; the bytes are those of the rank that sends most.

    Beside them the ranks compare how they are called.
    """
    made = counted_program(name, count)
    mesh, rows = made.local.mesh, list(plan_of(made.compiled).calls())
    found = [counted[name, count] for _, _, counted in ran]
    for rank, (sent, compared) in enumerate(found):
        assert [call[:2] for call in sent] == [between(row, mesh, rank) for row in rows]
        assert compared == {"comparison of the calls of all ranks"}
    most = [
        max(bytes_ for *_, bytes_ in calls) for calls in zip(*(x for x, _ in found), strict=True)
    ]
    assert most == [row.bytes // row.count for row in rows]
    assert len(rows) > count
