"""Prove every example: `shardlang verify` on each spec, one line each. Fails if one fails."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

from shardlang.cli import execute as run

HERE = Path(__file__).parent
PLANNED = ("llama/70b_64.shard",)
"""What is too large to prove as it stands, and is planned alone."""


def prove(spec: Path) -> bool:
    """Verify one spec and print its line."""
    start, out, err = time.perf_counter(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(["verify", str(spec), "--json"])
    name = spec.relative_to(HERE).as_posix()
    if status != 0:
        print(f"{name:26} FAILED\n{err.getvalue()}{out.getvalue()}", flush=True)
        return False
    found = json.loads(out.getvalue())
    outputs, gradients = found["outputs"]["max_error"], found["gradients"]["max_error"]
    errors = f"outputs {outputs:.1e}   gradients {gradients:.1e}"
    counts = f"{found['devices']} devices, {found['gradients']['count']} parameters"
    seconds = time.perf_counter() - start
    print(f"{name:26} ok   {errors}   {counts}, {seconds:.1f} s", flush=True)
    return True


def main() -> int:
    """Prove all examples; 0 if every one holds."""
    planned = {HERE / name for name in PLANNED}
    results = [prove(spec) for spec in sorted({*HERE.glob("*/*.shard")} - planned)]
    print(f"{sum(results)} of {len(results)} proven")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
