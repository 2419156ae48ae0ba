"""The loop of the README runs as it is pasted, under the command that stands above it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT
from tests.runtime.forking import python


def test_the_loop_runs_as_pasted(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "`torchrun --nproc-per-node 4 train.py`" in page
    (tmp_path / "train.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4",
         str(tmp_path / "train.py")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "PYTHON_EXEC": python(tmp_path)},
        text=True, timeout=300, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    losses = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 1
