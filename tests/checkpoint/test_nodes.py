"""A run on two nodes that loses a rank begins again on both, from the last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from shardlang.runtime import nodes
from shardlang.runtime.errors import RunError
from shardlang.runtime.nodes import Nodes
from shardlang.runtime.trainer.run_folder import LOG, records_of
from tests.runtime.forking import Popen

ROOT = Path(__file__).parent.parent.parent
MODEL = """
import os, pathlib, signal
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 5), nn.Linear(5, 1)
    def forward(self, x):
        return self.b(self.a(x).tanh()).square().mean()
def batches(seed):
    import torch
    made, marks = torch.Generator().manual_seed(seed), pathlib.Path(__file__).parent / "marks"
    for number in range(1, 100):
        mine = os.environ.get("RANK") == os.environ.get("GONE", "1")
        if mine and number == 8 and len(list(marks.glob("*"))) < KILLS:
            (marks / str(os.getpid())).touch()
            if "GONE" in os.environ:
                os.kill(int((marks.parent / "launcher").read_text()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"x": torch.rand(4, 8, generator=made)}
"""
SPEC = """mesh { dp = 2 }
model "model.py:Net"
input x : f32[4, 8] [dp, _]
optimizer adamw(lr = 0.1)
checkpoint every 3
"""


def endpoint() -> str:
    """An address of this machine that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run(
    folder: Path, kills: int, restarts: int, gone: int | None = None
) -> tuple[list[tuple[int, str]], Path]:
    """Ten steps on two nodes, rank 1 being killed at the eighth so often; how the nodes end.

    Args:
        gone: the node that ends with it, and is started anew by the same command.
    """
    (folder / "marks").mkdir(parents=True)
    (folder / "model.py").write_text(MODEL.replace("KILLS", str(kills)))
    (folder / "net.shard").write_text(SPEC)
    command = [sys.executable, "-m", "shardlang", "run", str(folder / "net.shard"), "--steps", "10"]
    command += ["--out", str(folder / "out"), "--max-restarts", str(restarts), "--nnodes", "2"]
    where = ["--rdzv-endpoint", endpoint()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {} if gone is None else {"GONE": str(gone)}

    def start(node: int) -> Popen:
        made = [*command, *where, "--node-rank", str(node)]
        with (folder / f"said{node}").open("wb") as said:
            launcher = Popen(made, env, stdout=said, stderr=said, start_new_session=True)
        if node == gone:
            (folder / "launcher").write_text(str(launcher.pid))
        return launcher

    started = [start(node) for node in range(2)]
    if gone is not None:
        assert started[gone].wait(240) == -signal.SIGKILL
        started[gone] = start(gone)
    ends = [node.wait(240) for node in started]
    said = [(folder / f"said{node}").read_text() for node in range(2)]
    return list(zip(ends, said, strict=True)), folder / "out"


def test_both_nodes_begin_again(tmp_path: Path) -> None:
    """At the checkpoint of step 6, or of 3 where the kill met the saving of that."""
    ends, out = run(tmp_path / "one", kills=1, restarts=1)
    assert [status for status, _ in ends] == [0, 0], ends
    for _, said in ends:
        assert said.count("rank 1 was killed by signal 9 (SIGKILL); begins again") == 1
        assert "0 more restarts left" in said
    events = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    assert [line["step"] for line in events if "event" in line] in ([6], [3])
    _, whole = run(tmp_path / "whole", kills=0, restarts=0)
    assert [x["loss"] for x in records_of(out)] == [x["loss"] for x in records_of(whole)]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_node_that_is_gone_may_be_started_anew(tmp_path: Path, gone: int) -> None:
    """By the command that began the run, without `--resume`; the other one begins by itself."""
    ends, out = run(tmp_path, kills=1, restarts=1, gone=gone)
    assert [status for status, _ in ends] == [0, 0], ends
    assert "begins again" in ends[1 - gone][1] and "begins again" not in ends[gone][1]
    events = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    assert [line["step"] for line in events if "event" in line] in ([6], [3])
    assert len(records_of(out)) == 10


def test_a_node_does_not_join_the_job_that_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 0 holds its store a while, at the address of the next one. Another node may join.

    It does not matter whether the same process asks again or one that is started anew.
    """
    monkeypatch.setattr(nodes, "MEET_S", 1.0)
    monkeypatch.setattr(nodes, "BEAT_S", 0.1)
    where = endpoint()
    with Nodes(3, 0, where):
        with Nodes(3, 1, where):
            pass
        with pytest.raises(RunError, match="another command is node 1 of the job at") as caught:
            Nodes(3, 1, where).__enter__()
        assert "--node-rank" in str(caught.value.help)
        with Nodes(3, 2, where):
            pass
    with Nodes(3, 0, where) as again, Nodes(3, 1, where) as second:
        assert again.failure(done=False) is None and second.failure(done=False) is None
