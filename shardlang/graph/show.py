"""A compiled spec in a notebook: its plan, and its picture where Graphviz is there to draw it."""

from __future__ import annotations

import html
import shutil
import subprocess
from typing import TYPE_CHECKING

from shardlang.graph.draw import dot_of

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled

_PATIENCE_S = 20.0
"""How long a cell of a notebook waits for a picture."""


def drawn(text: str) -> str | None:
    """DOT text as SVG; None without Graphviz, or where it fails or takes too long."""
    program = shutil.which("dot")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=text.encode(), capture_output=True, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def html_of(compiled: Compiled) -> str:
    """The plan as text, and below it the picture, or its DOT text behind a fold."""
    from shardlang.plan import plan_of
    from shardlang.plan.render import render_plan

    plan = f"<pre>{html.escape(render_plan(plan_of(compiled)))}</pre>"
    dot = dot_of(compiled)
    picture = drawn(dot)
    if picture is not None:
        return plan + picture[max(picture.find("<svg"), 0) :]
    summary = "the graph as DOT text (Graphviz is needed to draw it)"
    return f"{plan}<details><summary>{summary}</summary><pre>{html.escape(dot)}</pre></details>"
