"""The whole way from a compiled spec to DOT text, and from there to a file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from shardlang.compiler.pipelined import pipelined
from shardlang.compiler.whole_step import whole_step
from shardlang.graph.dot import dot_text
from shardlang.graph.fold import (
    join_light,
    join_modules,
    join_parameters,
    join_preparation,
    place_reshards,
)
from shardlang.graph.picture import Drawn, Picture
from shardlang.graph.read import Reader
from shardlang.graph.repeats import fold_repeats
from shardlang.graph.stages_picture import stages_picture
from shardlang.graph.step_picture import step_picture
from shardlang.passes.pipeline import PIPELINE, PROPAGATE, Pass
from shardlang.plan.moments import Phase

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled

STAGES: dict[Drawn, tuple[Pass, ...]] = {
    Drawn.TRACED: (),
    Drawn.PROPAGATED: PROPAGATE,
    Drawn.REWRITTEN: PIPELINE,
    Drawn.STEP: PIPELINE,
}
"""Stage to the passes that lead to it."""

FOLDS = (join_preparation, join_light, place_reshards, join_parameters, join_modules)
"""What makes every picture readable, in order."""

FORMATS = (".dot", ".svg", ".png")


class DrawError(ValueError):
    """A file that cannot be drawn: what is wrong, and what to do."""

    def __init__(self, message: str, help: str) -> None:
        super().__init__(message)
        self.message, self.help = message, help


def picture_of(
    compiled: Compiled,
    stage: Drawn = Drawn.STEP,
    factored: bool = True,
    phases: Collection[Phase] = tuple(Phase),
) -> Picture:
    """The picture of a spec that was compiled with the passes of a stage.

    Args:
        phases: what is drawn of a step. Where nothing is trained there is a forward alone, and the
            rewritten program is drawn.
    """
    if stage is Drawn.STEP and compiled.spec.pipeline is not None:
        return stages_picture(compiled, pipelined(compiled), factored, phases)
    step = whole_step(compiled) if stage is Drawn.STEP else None
    if step is not None:
        return step_picture(compiled, step, factored, phases)
    stage = Drawn.REWRITTEN if stage is Drawn.STEP else stage
    program = compiled.program if stage is Drawn.REWRITTEN and compiled.train else None
    picture = Reader(compiled.graph, stage, program).picture()
    for smaller in FOLDS:
        picture = smaller(picture)
    return fold_repeats(picture) if factored else picture


def dot_of(
    compiled: Compiled,
    stage: Drawn = Drawn.STEP,
    factored: bool = True,
    phases: Collection[Phase] = tuple(Phase),
) -> str:
    """DOT text of a spec that was compiled with the passes of a stage.

    Args:
        factored: whether repeated layers are drawn once.
        phases: what is drawn of a step.
    """
    shown = ", ".join(phases) if len(phases) < len(Phase) else stage
    picture = picture_of(compiled, stage, factored, phases)
    return dot_text(picture, f"{compiled.spec.path.name}, {shown}", compiled.graph.mesh)


def write(text: str, path: Path) -> None:
    """Write DOT text as it is, or drawn by Graphviz.

    Raises:
        DrawError: the ending is unknown, Graphviz is missing or fails.
        OSError: the file cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise DrawError(f"cannot draw a `{ending}` file", "name a file in .dot, .svg or .png")
    if ending == ".dot":
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    program = shutil.which("dot")
    if program is None:
        raise DrawError(
            f"Graphviz is not installed, so `{path}` cannot be drawn",
            "install Graphviz (`apt install graphviz`), or write a .dot file",
        )
    done = subprocess.run(
        [program, f"-T{ending[1:]}", "-o", str(path)], input=text.encode(), capture_output=True
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[0]
        raise DrawError(f"Graphviz failed: {reason}", "write a .dot file and draw it yourself")
