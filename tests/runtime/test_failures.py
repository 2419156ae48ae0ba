"""A rank that fails ends the whole job, soon, with one message that names it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from spawn import spawn

from shardlang.runtime import signals
from shardlang.runtime.checks import first_difference, same_start
from shardlang.runtime.errors import RunError
from shardlang.runtime.launch import Job, launch
from shardlang.runtime.nodes import Nodes
from tests.broad import sampled

CASES = {
    "killed": ("SH0603", "rank 1 was killed by signal 9 (SIGKILL)"),
    "raises": ("SH0603", "rank 1 failed: ValueError: no more (faults.py:"),
    "stuck": ("SH0604", "rank 0 waited too long in forward all_reduce over a in layers.3"),
    "two_programs": ("SH0602", "rank 1 holds another program than rank 0: line 4 is "),
    "other_specs": (
        "SH0602",
        "rank 1 holds another spec than rank 0:"
        " line 5 is `optimizer sgd(lr = 0.1, clip = 0.5)` on rank 0 and"
        " `optimizer sgd(lr = 0.1, clip = 1.5)` there",
    ),
    "other_options": ("SH0612", "different options: rank 0 with no `--reference`, rank 1 with"),
    "other_mesh": ("SH0601", "2 processes were started, and the mesh (a = 4) has 4 devices"),
}


def test_long_lines_are_quoted_where_they_differ() -> None:
    said = first_difference(["same", "x" * 300 + "one" + "y" * 300], ["same", "x" * 300 + "two"])
    assert said.startswith("line 2 is `…x") and "xone" in said and "xtwo` there" in said
    assert len(said) < 300


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which nothing stays in."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_message_names_the_rank(name: str, tmp_path: Path, temporary: Path) -> None:
    with pytest.raises(RunError) as caught:
        spawn(f"faults:{name}", 2, tmp_path, WAIT_IN=str(tmp_path))
    code, message = CASES[name]
    assert caught.value.code == code
    assert message in caught.value.message
    if name == "stuck":
        assert "rank 1 in no collective" in caught.value.help
    assert list(temporary.iterdir()) == []
    notes = caught.value.notes
    if name == "raises":
        assert "raise ValueError" in notes[0] and "spawn" not in notes[0]
        assert "runtime/reports.py" not in notes[0]
        assert len(notes) == 1
    elif code == "SH0604":
        assert notes[0].startswith("the last that rank 0 has said:\n")
    elif code in ("SH0601", "SH0602"):
        assert not notes


def test_a_failed_run_leaves_the_logs_of_its_ranks_in_its_folder(
    tmp_path: Path, temporary: Path
) -> None:
    with pytest.raises(RunError) as caught:
        spawn("faults:raises", 2, tmp_path, failed=tmp_path / "out" / "logs")
    assert caught.value.notes[-1] == f"the logs of the ranks are in {tmp_path / 'out' / 'logs'}"
    assert "ValueError" in (tmp_path / "out" / "logs" / "1.traceback").read_text()
    assert (tmp_path / "out" / "logs" / "1.log").is_file()
    assert list(temporary.iterdir()) == []


def test_the_sets_of_all_ranks_have_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may go through a set of names: its ops stand in that order."""
    told = "import os, sys; open(sys.argv[1] + os.environ['RANK'], 'w').write(str(hash('a')))"
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    launch(Job([sys.executable, "-c", told, f"{tmp_path}/"], 2))
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert "PYTHONHASHSEED=0" in same_start()
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert "PYTHONHASHSEED" not in same_start()


@pytest.mark.parametrize("number", sampled((signal.SIGINT, signal.SIGKILL), (signal.SIGKILL,)))
def test_workers_end_with_their_supervisor(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from spawn import spawn\n"
        f"spawn('faults:waits', 2, Path({str(tmp_path)!r}), fresh=True, WAIT_IN={str(tmp_path)!r})"
    )
    folder = Path(__file__).parent
    paths = f"{folder}:{folder.parents[1]}"
    env = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program], env=env, stderr=subprocess.DEVNULL
    )
    pids = [_pid(tmp_path / str(rank)) for rank in range(2)]
    supervisor.send_signal(number)
    assert supervisor.wait(40) != 0
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its supervisor"
        time.sleep(0.1)


def test_one_signal_ends_a_step_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ranks are asked to save, cannot, and are ended; it is said."""
    monkeypatch.setattr(signals, "STEP_S", 3.0)

    def ask() -> None:
        _pid(tmp_path / "1")
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(SystemExit) as caught:
        spawn("faults:waits_in_a_step", 2, tmp_path, 100, saves=True, WAIT_IN=str(tmp_path))
    asking.join()
    assert caught.value.code == 128 + signal.SIGTERM
    said = " ".join(capsys.readouterr().err.split())
    assert "the step did not end within 3 s; nothing is saved; last seen: rank 0 in forward" in said
    assert "rank 1 in no collective" in said


def _pid(path: Path) -> int:
    deadline = time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, "the worker did not start"
        time.sleep(0.05)
    return int(path.read_text())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_node_says_that_it_is_done_before_it_leaves() -> None:
    """Even if it hears of the others' end first, and ends right after a beat of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    with Nodes(2, 0, endpoint) as first, Nodes(2, 1, endpoint) as second:
        assert first.failure(done=True) is None
        assert second.failure(done=False) is None
        assert not second.all_done()
        assert second.failure(done=True) is None
        assert second.all_done()
        first._next_beat = 0.0
        assert first.failure(done=True) is None
        assert first.all_done()
