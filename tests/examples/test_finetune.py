"""Every command of docs/finetune.md, one after the other, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "finetune.md"


def test_every_command_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    tools = tmp_path / ".tools"
    tools.mkdir()
    for name, what in (("shardlang", "-m shardlang"), ("python", "")):
        (tools / name).write_text(f'#!/usr/bin/env bash\nexec {sys.executable} {what} "$@"\n')
        (tools / name).chmod(0o755)
    (tmp_path / "shardlang").mkdir()
    (tmp_path / "shardlang" / "examples").symlink_to(ROOT / "examples")
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "proven equal on 4 simulated devices" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Alice was")
