"""kill -9 of a random rank at random moments: `python -m tests.checkpoint.kills --times 20`.

A run on two processes saves every fifth step. Again and again one of its ranks is killed, and it
is resumed. Every step that is taken, twice or once, must have the very loss that it has in a run
without a break, and what is half-written must never be taken for a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.runtime.forking import Popen

HERE = Path(__file__).parent
SPEC = f"""
mesh {{ dp = 2 }}
model "{HERE / "noisy.py"}:build"
input x : f32[4, 6] [dp, _]
input y : f32[4, 3] [dp, _]
optimizer adamw(lr = 0.05, clip = 0.5)
store "**" over dp
checkpoint every 5 keep 2
"""
START_S = 60.0
SPAN_S = 0.5
"""A rank is killed so long after the first save of its run, at most."""


@dataclass(slots=True)
class Run:
    """A run in a folder, killed and resumed.

    Attributes:
        losses: by step, as often as it was taken.
        saving: how many kills hit a save.
    """

    folder: Path
    losses: dict[int, list[float]] = field(default_factory=dict)
    kills: int = 0
    saving: int = 0

    def go(self, steps: int, kill: random.Random | None = None) -> None:
        """Go on to a step, or until a rank is killed."""
        pids = Path(tempfile.mkdtemp(dir=self.folder))
        (self.folder / "spec.shard").write_text(SPEC)
        command = [
            sys.executable, "-m", "shardlang", "run", str(self.folder / "spec.shard"),
            "--steps", str(steps), "--out", str(self.folder / "out"), "--resume",
        ]  # fmt: skip
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            env = {**os.environ, "PIDS": str(pids), "OMP_NUM_THREADS": "1"}
            process = Popen(command, env, stdout=out, stderr=err, start_new_session=True)
            was_killed = kill is not None and self._kill(process, pids, kill)
            status = process.wait(2 * START_S)
            for stream in (out, err):
                stream.seek(0)
            self._note(out.read().decode())
            if status and not was_killed:
                raise AssertionError(err.read().decode())

    def _kill(self, process: Popen, pids: Path, draw: random.Random) -> bool:
        """Kill a rank at a random moment after the first draft of this run; whether it ran."""
        saved = self.folder / "out" / "checkpoints"
        for _ in _waiting(process):
            if len(list(pids.iterdir())) == 2 and any(saved.glob(".draft-*")):
                break
        time.sleep(draw.uniform(0, SPAN_S))
        if process.poll() is not None:
            return False
        self.saving += any(saved.glob(".draft-*"))
        self.kills += 1
        os.kill(int((pids / draw.choice("01")).read_text()), signal.SIGKILL)
        return True

    def _note(self, output: str) -> None:
        for line in output.splitlines():
            said = json.loads(line)
            if "step" in said:
                self.losses.setdefault(said["step"], []).append(said["loss"])


def _waiting(process: Popen) -> Iterator[None]:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        yield
        time.sleep(0.002)


def killed(folder: Path, times: int, seed: int = 0) -> tuple[Run, Run]:
    """A run that is killed so many times, and one without a break, to the same step."""
    draw, broken = random.Random(seed), Run(folder / "broken")
    broken.folder.mkdir()
    while broken.kills < times:
        broken.go(100_000, draw)
    last = max(broken.losses, default=0) + 5
    broken.go(last)
    straight = Run(folder / "straight")
    straight.folder.mkdir()
    straight.go(last)
    return broken, straight


def differences(broken: Run, straight: Run) -> list[str]:
    """Steps whose losses differ, or that were never taken, in words."""
    found = []
    for step, (wanted,) in straight.losses.items():
        taken = broken.losses.get(step, [])
        if not taken or any(loss != wanted for loss in taken):
            found.append(f"step {step}: {taken} instead of {wanted}")
    return found


def main() -> None:
    """Kill so often as is asked, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broken, straight = killed(Path(folder), given.times, given.seed)
    wrong = differences(broken, straight)
    again = sum(len(taken) - 1 for taken in broken.losses.values())
    print(
        f"{broken.kills} kills, {broken.saving} of them while a checkpoint was drafted;"
        f" {len(straight.losses)} steps, {again} of them taken again;"
        f" {'every loss is that of a run without a break' if not wrong else 'WRONG'}"
    )
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
