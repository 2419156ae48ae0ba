"""What is sent over each mesh axis in a step: worked out by hand, as a document and as text."""

from __future__ import annotations

import json

from shardlang.plan import Plan, plan_document
from shardlang.plan.by_axis import TRANSFERS, by_axis
from shardlang.plan.render import render_plan
from shardlang.plan.totals import Total
from tests.plan.plans import FSDP, SP, TP, plan

PIPELINE = """
mesh { pp = 2  tp = 2 }
model "models.py:stack"(layers = 2)
input x : f32[16, 12, 8] [_, _, _]
param "**.up.{weight,bias}" [tp, ...]
param "**.down.weight" [_, tp]
pipeline pp { split "layers"  microbatches 4  schedule gpipe }
"""
VALUE = 4 * 12 * 8 * 4
"""Bytes of what a block gives for a microbatch."""


def ops(found: Plan) -> dict[tuple[str, ...], dict[str, Total]]:
    """Calls and bytes by axes and op."""
    return {one.axes: dict(one.ops) for one in by_axis(found)}


def test_a_rank_of_a_pipeline_sends_over_each_axis() -> None:
    """The first one reduces, of each of 4 microbatches, its value, which it sends, and a gradient.

    With two devices an all-reduce sends what is reduced. The second stage sends that gradient as a
    partial sum, and reduces a value alone. The norm is one float64 number over four devices.
    """
    assert ops(plan(PIPELINE)) == {
        ("pp",): {"all_reduce": Total(1, 4), TRANSFERS: Total(4, 4 * VALUE)},
        ("tp",): {"all_reduce": Total(8, 8 * VALUE)},
        ("pp", "tp"): {"all_reduce": Total(1, 2 * 8 * 3 // 4)},
    }


def test_a_step_without_a_pipeline() -> None:
    """A value is reduced over `tp`, the gradients of four parameters over `dp`.

    The input gets no gradient. Without a loss no norm is taken.
    """
    value, weights = 2 * 12 * 8 * 4, (24 * 8 + 24 + 8 * 24) // 4 + 8
    assert ops(plan(TP)) == {
        ("dp",): {"all_reduce": Total(1, weights * 4)},
        ("tp",): {"all_reduce": Total(1, 2 * value * 3 // 4)},
    }


def test_the_axes_have_all_that_is_sent() -> None:
    for text in (TP, SP, FSDP, PIPELINE):
        found = plan(text)
        document = json.loads(json.dumps(plan_document(found)))
        sent = sum(one.together.bytes for one in by_axis(found))
        assert sum(one["bytes"] for one in document["axes"]) == sent
        totals = (row["bytes"] for ops in document["totals"].values() for row in ops.values())
        transfers = 4 * VALUE if text is PIPELINE else 0
        assert sum(totals) + transfers == sent


def test_the_text_has_a_line_for_each_op_and_one_for_all() -> None:
    text = render_plan(plan(FSDP))
    below = text[text.index("of these over each axis") :].split("\n\n")[0].split("\n")
    assert [line.split()[:-3] for line in below[1:]] == [
        ["replica", "all_reduce"],
        ["shard", "all_gather"],
        ["reduce_scatter"],
        ["all"],
        ["replica*shard", "all_reduce"],
    ]
    assert max(map(len, text.split("\n"))) <= 80
    piped = render_plan(plan(PIPELINE))
    assert "of these over each axis, of rank 0" in piped
    below = piped[piped.index("of these over each axis") :].split("\n\n")[0].split("\n")
    assert [" ".join(line.split()[:-2]) for line in below[1:4]] == [
        "pp all_reduce ×1", "to other stages ×4", "all ×5",
    ]  # fmt: skip
