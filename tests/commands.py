"""Running the command line inside the test process."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from shardlang.cli import execute as run

ROOT = Path(__file__).parent.parent


def shardlang(*args: str | Path) -> tuple[int, str, str]:
    """Run a command; its exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(arg) for arg in args])
    return status, out.getvalue(), err.getvalue()


def document(*args: str | Path) -> dict[str, Any]:
    """The JSON document that a command prints, which must be one line and clean."""
    status, out, err = shardlang(*args, "--json")
    assert status == 0, out + err
    (line,) = out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found
