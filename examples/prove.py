"""Prove every example: `shardlang verify` on each spec, one line each. Exits with 1 if one fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def prove(spec: Path) -> bool:
    """Verify one spec and print its line."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "shardlang", "verify", str(spec), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    name = spec.relative_to(HERE).as_posix()
    if done.returncode != 0:
        print(f"{name:28} FAILED\n{done.stderr}", flush=True)
        return False
    found = json.loads(done.stdout)
    outputs, gradients = found["outputs"]["max_error"], found["gradients"]["max_error"]
    errors = f"outputs {outputs:.1e}   gradients {gradients:.1e}"
    counts = f"{found['devices']} devices, {found['gradients']['count']} parameters"
    print(f"{name:28} ok   {errors}   {counts}, {seconds:.1f} s", flush=True)
    return True


def main() -> int:
    """Prove all examples; 0 if every one holds."""
    results = [prove(spec) for spec in sorted(HERE.glob("*/*.shard"))]
    print(f"{sum(results)} of {len(results)} proven")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
