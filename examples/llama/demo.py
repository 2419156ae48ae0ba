"""Train demo.shard on 4 processes and compare every step's loss with a single process.

Fails if a step differs by more than 1e-5 relative, or if the last loss is above 0.8 of the first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = 20
TOLERANCE = 1e-5
FALL = 0.8


def train() -> list[dict[str, Any]]:
    """Run the command and return its lines: one record per step, then the summary."""
    spec, text = HERE / "demo.shard", HERE / "text.txt"
    command = [sys.executable, "-m", "shardlang", "run", str(spec), "--steps", str(STEPS)]
    command += ["--data", str(text), "--reference", "--json"]
    print(f"training {STEPS} steps on 4 processes, then on one …", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> int:
    """Print the table of losses; 0 if they agree and fall."""
    *steps, last = train()
    summary = last["summary"]
    sharded = [step["loss"] for step in steps]
    single = summary["reference"]["losses"]
    errors = [abs(a - b) / abs(b) for a, b in zip(sharded, single, strict=True)]
    print("step   4 processes   1 process     relative difference")
    for step, (a, b, error) in enumerate(zip(sharded, single, errors, strict=True), start=1):
        print(f"{step:4}   {a:.7f}     {b:.7f}     {error:.1e}")
    ratio = sharded[-1] / sharded[0]
    mesh = " x ".join(f"{axis} {size}" for axis, size in summary["mesh"].items())
    print(f"{summary['parameters']:,} parameters, {summary['local_parameters']:,} on each device")
    print(f"mesh {mesh}; median step {summary['step_s']:.3f} s, one process "
          f"{summary['reference']['step_s']:.3f} s")  # fmt: skip
    agree, fell = max(errors) <= TOLERANCE and len(steps) == STEPS, ratio <= FALL
    print(f"largest difference {max(errors):.1e} (at most {TOLERANCE}): {verdict(agree)}")
    print(f"last loss {ratio:.3f} of the first (at most {FALL}): {verdict(fell)}")
    return 0 if agree and fell else 1


def verdict(holds: bool) -> str:
    """`ok` or `FAILED`."""
    return "ok" if holds else "FAILED"


if __name__ == "__main__":
    sys.exit(main())
