"""Processes that a zygote forks are what processes of the same commands are."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.forking import Popen, TimeoutExpired, completed

TELLS = """
import atexit, json, os, sys, threading
atexit.register(lambda: print("ended", flush=True))
print("said", file=sys.stderr)
print(json.dumps({
    "args": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "path": sys.path,
    "name": __name__, "order": [hash("a"), hash("b")], "pid": os.getpid(),
    "session": os.getsid(0) == os.getpid(), "threads": threading.active_count(),
}))
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    path = tmp_path / "tells.py"
    path.write_text(TELLS)
    return [sys.executable, str(path), "one", "two words"]


def test_it_is_the_process_that_was_asked_for(script: list[str], tmp_path: Path) -> None:
    env = {"PYTHONPATH": "/nowhere", "MINE": "3"}
    told = []
    for _ in range(2):
        done = completed(script, env, 30, cwd=tmp_path)
        assert done.returncode == 7 and done.stderr == "said\n"
        line, last = done.stdout.splitlines()
        assert last == "ended"
        told.append(json.loads(line))
    for found in told:
        assert found["args"] == ["one", "two words"] and found["name"] == "__main__"
        assert found["cwd"] == str(tmp_path) and found["session"] and found["threads"] == 1
        assert {name: found["env"][name] for name in env} == env and "HOME" not in found["env"]
        assert found["path"][:2] == [str(tmp_path), "/nowhere"]
    assert told[0]["pid"] != told[1]["pid"]
    assert told[0]["order"] != told[1]["order"], "ranks in turn have other hash seeds"


def test_a_module_and_an_error_end_as_ever(tmp_path: Path) -> None:
    done = completed([sys.executable, "-m", "shardlang", "--version"], {}, 30)
    assert done.returncode == 0 and done.stdout.startswith("shardlang ")
    (tmp_path / "fails.py").write_text("raise KeyError('no such rank')")
    done = completed([sys.executable, str(tmp_path / "fails.py")], {}, 30)
    assert done.returncode == 1 and done.stderr.endswith("KeyError: 'no such rank'\n")


def test_signals_and_a_parent_that_lets_go_end_it(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(600)")
    command = [sys.executable, str(tmp_path / "waits.py")]
    process = Popen(command, dict(os.environ))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM == process.poll()
    with pytest.raises(TimeoutExpired):
        completed(command, dict(os.environ), 0.2)
    left = Popen(command, dict(os.environ))
    pid = left.pid
    del left
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "it outlives the process that asked for it"
        time.sleep(0.02)
