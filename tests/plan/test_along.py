"""Calls of microbatches stand at the same modules, and for the same reasons, as without them."""

from __future__ import annotations

import pytest

from shardlang.plan.types import CollectiveRow
from tests.plan.plans import STACK, plan

STORED = 'store "**.up.*" over dp\n'
MORE = {
    "accumulate": "accumulate 2\n",
    "pipeline": 'pipeline pp { split "layers" microbatches 2 }\n',
}


def rows_of(text: str) -> list[CollectiveRow]:
    """The calls of forward and backward, but for those by which all stages get what one has."""
    rows = plan(text).collectives
    return [row for row in rows if row.phase in ("forward", "backward") and "pp" not in row.axes]


def said(rows: list[CollectiveRow]) -> set[tuple[object, ...]]:
    """What is said of calls, without how often they are made."""
    return {
        (row.op, row.axes, row.phase, row.module, row.tensors, row.reason.partition("; ")[0])
        for row in rows
    }


@pytest.mark.parametrize("more", MORE)
def test_it_is_said_of_them_what_is_said_of_one_batch(more: str) -> None:
    mesh = "mesh { dp = 2 tp = 4 pp = 2 }" if more == "pipeline" else "mesh { dp = 2 tp = 4 }"
    base = STACK.replace("mesh { dp = 2 tp = 4 }", mesh) + STORED
    one, several = rows_of(base), rows_of(base + MORE[more])
    if more == "pipeline":  # what a stage sends together, it sends without the other's
        one, several = ([row for row in rows if len(row.tensors) == 1] for rows in (one, several))
    assert one and said(one) == said(several)
