"""The program of a stage as text, by which the ranks of a stage compare theirs.

    stage 1
    x from stage 0
    step
    ...
    gradients "layers.1.weight" mm_1
    y to stages 2, 3
    reduce "layers.1.weight"
    all_reduce = all_reduce[dp](mm_1)

Between the lines of what comes and what goes stands the text of the stage's step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from shardlang.ir.accumulated import Piece
from shardlang.ir.node import returned_nodes
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.ir.spelling import quoted
from shardlang.ir.step_options import StepOptions
from shardlang.ir.step_text import made_text, step_text


def stage_lines(step: StagedStep, number: int) -> list[str]:
    """The text of a stage: what it computes, what comes from others, and what goes to them."""
    return list(_lines(step.stages[number], step.reduces[number]))


def stage_fingerprints(step: StagedStep) -> list[str]:
    """A hash of the text of each stage."""
    texts = ("\n".join(stage_lines(step, one.number)) for one in step.stages)
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def _lines(stage: StageProgram, reduce: Piece) -> Iterator[str]:
    yield f"stage {stage.number}"
    for name, source in (*stage.values.items(), *stage.gradients.items()):
        yield f"{name} from stage {source}"
    yield from step_text(stage.step, StepOptions()).splitlines()
    for name, targets in (*stage.gives.items(), *stage.returns.items()):
        yield f"{name} to stages {', '.join(map(str, targets))}"
    yield f"reduce {', '.join(map(quoted, reduce.takes))}"
    calls = (node for node in reduce.graph.nodes if node.op == "call_function")
    yield from (f"{node} = {made_text(node)}" for node in calls)
    pairs = zip(reduce.gives, returned_nodes(reduce.graph), strict=True)
    yield f"gives {', '.join(f'{quoted(name)} {node}' for name, node in pairs)}"
