"""Every command of docs/finetune.md, one after the other, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.broad import broad
from tests.runtime.forking import completed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "finetune.md"
COMMAND = re.compile(r"^.*<<'EOF'\n(?:.*\n)*?EOF$|^.+$", re.MULTILINE)
"""One line, or what a shell is given up to `EOF`."""


def ran(command: str, folder: Path) -> str:
    """What a command prints; those of Python are forks of a process that has its imports."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    name, *words = shlex.split(command.partition("<<")[0], comments=True)
    given = command.partition("<<'EOF'\n")[2].removesuffix("EOF")
    if name == "shardlang":
        done = completed([sys.executable, "-m", "shardlang", *words], env, 300, folder)
    elif name == "python" and words[0] != "-":
        done = completed([sys.executable, *words], env, 300, folder)
    else:
        shown = [sys.executable, "-c", given] if name == "python" else ["bash", "-c", command]
        done = subprocess.run(
            shown, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@broad
def test_every_command_runs(tmp_path: Path) -> None:
    (tmp_path / "shardlang").mkdir()
    (tmp_path / "shardlang" / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = [one for block in blocks for one in COMMAND.findall(block)]
    assert len(commands) == 12
    printed = [ran(command, tmp_path) for command in commands]
    assert "proven equal on 4 simulated devices" in "".join(printed)
    assert printed[-1].startswith("Alice was")
