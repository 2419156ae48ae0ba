"""A pipeline that loses a rank of a middle stage goes on with half as many stages."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardlang.runtime.trainer.run_folder import RUN, records_of
from tests.runtime.forking import Popen

MODEL = Path(__file__).with_name("layered.py")
SPEC = f"""
mesh {{{{ {{mesh}} }}}}
model "{MODEL}:build"
input x : f32[8, 6] [_, _]
input y : f32[8, 3] [_, _]
optimizer adamw(lr = 0.01, clip = 1.0)
{{parts}}
checkpoint every 2
"""
FOUR = SPEC.format(
    mesh="pp = 4", parts='pipeline pp { split "layers" schedule 1f1b microbatches 4 }'
)
TWO = SPEC.format(
    mesh="pp = 2", parts='pipeline pp { split "layers" schedule gpipe microbatches 4 }'
)
ALONE = SPEC.format(mesh="dp = 1", parts="accumulate 4")
CHANGE = ((4, "1f1b"), (2, "gpipe"))
MORE = 4
"""How many steps are taken after the checkpoint."""
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        after_s: seconds from the kill to the end of the last rank.
    """

    status: int
    said: str
    after_s: float = 0.0


def run(folder: Path, spec: str, steps: int, out: str, *more: str) -> Ended:
    """`shardlang run` to its end."""
    with tempfile.TemporaryFile() as errors:
        process = _started(folder, spec, steps, out, errors, *more)
        status = process.wait(START_S)
        return Ended(status, _text(errors))


def killed(folder: Path, spec: str, rank: int, out: str) -> Ended:
    """The same, without an end: a rank is killed behind the second checkpoint."""
    pids = folder / "pids"
    pids.mkdir()
    with tempfile.TemporaryFile() as errors:
        logs = ("--log-dir", str(folder / "logs"))
        process = _started(folder, spec, 100_000, out, errors, *logs, PIDS=str(pids))
        for _ in _waiting(process):
            if (folder / out / "checkpoints" / "step-000004").is_dir():
                break
        numbers = [int((pids / str(each)).read_text()) for each in range(4)]
        began = time.monotonic()
        os.kill(numbers[rank], signal.SIGKILL)
        while any(_alive(pid) for pid in numbers) and time.monotonic() < began + START_S:
            time.sleep(0.01)
        after_s = time.monotonic() - began
        return Ended(process.wait(START_S), _text(errors), after_s)


def _started(
    folder: Path, spec: str, steps: int, out: str, errors: Any, *more: str, **env: str
) -> Popen:
    path = folder / "spec.shard"
    path.write_text(spec)
    command = [sys.executable, "-m", "shardlang", "run", str(path), "--steps", str(steps)]
    command += ["--out", str(folder / out), *more]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    with Path(os.devnull).open("wb") as nothing:
        return Popen(command, given, stdout=nothing, stderr=errors, start_new_session=True)


def _text(errors: Any) -> str:
    errors.seek(0)
    return " ".join(errors.read().decode().split())


def _waiting(process: Popen) -> Iterator[None]:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        yield
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def losses(folder: Path) -> dict[object, Any]:
    """The losses of a run by step."""
    return {line["step"]: line["loss"] for line in records_of(folder)}


def fingerprints(folder: Path, step: int) -> set[str]:
    """Those of the stages, from a checkpoint."""
    path = folder / "checkpoints" / f"step-{step:06}" / "manifest.json"
    return set(json.loads(path.read_text())["about"]["stages"])


def test_half_as_many_stages_go_on_where_a_rank_was_killed(tmp_path: Path) -> None:
    """With another schedule, and from the last checkpoint: as one process would have."""
    ended = killed(tmp_path, FOUR, 2, "out")
    named = "rank 2 (stage 2 along `pp`) was killed by signal 9 (SIGKILL)"
    assert ended.status == 1 and named in ended.said, ended.said
    assert ended.after_s < 30
    about = json.loads((tmp_path / "out" / RUN).read_text())
    assert (about["state"], about["message"]) == ("failed", named)
    before = losses(tmp_path / "out")

    saved = max(int(p.name[5:]) for p in (tmp_path / "out" / "checkpoints").glob("step-*"))
    steps = saved + MORE
    resumed = run(tmp_path, TWO, steps, "out", "--resume")
    assert resumed.status == 0, resumed.said
    assert [len(fingerprints(tmp_path / "out", step)) for step in (saved, steps)] == [4, 2]
    assert f"goes on after step {saved}" in resumed.said
    assert "`mesh` was pp = 4 and is pp = 2" in resumed.said
    was, now = (f"{n} stages over pp, {order}, 4 microbatches" for n, order in CHANGE)
    assert f"`pipeline` was {was} and is {now}" in resumed.said
    assert run(tmp_path, ALONE, steps, "alone").status == 0
    alone = losses(tmp_path / "alone")
    assert losses(tmp_path / "out") == pytest.approx(alone, rel=1e-5)
    assert {step: x for step, x in before.items() if step <= steps} == pytest.approx(
        {step: alone[step] for step in before if step <= steps}, rel=1e-5
    )
