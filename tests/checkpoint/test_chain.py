"""A checkpoint is loaded on any mesh, by any spec, and on one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import ROOT, spawn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import chain  # noqa: E402

from shardlang.runtime.checkpoint.checkpoints import Checkpoints  # noqa: E402


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What every rank found, and the folder of the checkpoints."""
    out = tmp_path_factory.mktemp("chain")
    paths = f"{ROOT}:{ROOT / 'tests' / 'runtime'}:{HERE}"
    return spawn("chain:everything", 4, out, 120, SCRATCH=str(out), PYTHONPATH=paths), out


def test_the_chain_continues_the_losses_of_one_process(ran: Any) -> None:
    """dp4, tp2 x dp2, fsdp4 and one process: five steps each, against one without a break."""
    model, optimizer = chain.plain()
    steps = chain.EACH * (len(chain.SPECS) + 1)
    wanted = [chain.plain_step(model, optimizer, step) for step in range(steps)]
    last, its = chain.plain()
    with torch.no_grad():
        for param in last.parameters():
            param.zero_()
    step = Checkpoints(ran[1] / "chain").load({"model": last, "optimizer": its})
    assert step == steps - chain.EACH
    losses = [chain.plain_step(last, its, number) for number in range(step, steps)]
    for rank in ran[0]:
        found = torch.tensor(rank["losses"] + losses)
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-10, atol=0)
    assert last.get_buffer("seen") == steps
    found_states = chain.states_of(last, its)
    for name, states in chain.states_of(model, optimizer).items():
        for key, value in states.items():
            torch.testing.assert_close(found_states[name][key], value, rtol=1e-8, atol=1e-11)


def test_one_process_gets_the_very_weights_and_states(ran: Any) -> None:
    last, its = chain.plain()
    Checkpoints(ran[1] / "chain").load({"model": last, "optimizer": its})
    found = chain.weights_of(last), chain.states_of(last, its)
    for rank in ran[0]:
        weights, states = rank["end"]
        assert all(torch.equal(found[0][name], value) for name, value in weights.items())
        for name, mine in states.items():
            assert found[1][name].keys() == mine.keys()
            assert all(torch.equal(found[1][name][key], mine[key]) for key in mine), name


def test_a_loop_of_ones_own_resumes_to_the_bit(ran: Any) -> None:
    """Groups, a schedule, and generators that differ between ranks."""
    draws = [rank["own"]["after"][0][1] for rank in ran[0]]
    assert len(set(draws)) == len(draws)
    for rank in ran[0]:
        for found, wanted in zip(rank["own"]["again"], rank["own"]["after"], strict=True):
            assert torch.equal(found, wanted)


def test_the_manifest_says_what_the_run_was(ran: Any) -> None:
    (name,) = (path.name for path in (ran[1] / "chain").glob("step-*"))
    assert name == "step-000015"
    said = json.loads((ran[1] / "chain" / name / "manifest.json").read_text())
    assert (said["step"], said["world"], said["about"]["mesh"]) == (15, 4, {"dp": 4})
    assert 'store "**" over dp' in said["about"]["spec"] and len(said["about"]["program"]) == 64
    assert said["tensors"]["model.up.weight"] == "float64 [5, 6@dp]"
    assert said["tensors"]["optimizer.state.up.weight.exp_avg"] == "float64 [5, 6@dp]"
    assert {file["name"] for file in said["files"]} >= {".metadata", "__3_0.distcp", "values.json"}
