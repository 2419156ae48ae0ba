"""Plans of pipelines: stages, what goes between them, the bubble, and what a rank holds."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor, nn

from shardlang.cost.composition import Kind
from shardlang.ir.mesh import BANDWIDTHS
from shardlang.ir.pipeline.action import Action, Work
from shardlang.plan import Memory, Plan, plan_document
from shardlang.plan.busiest import busiest_rank, sent_by
from shardlang.plan.compare import compare, comparison_document
from shardlang.plan.expectations import check_expects
from shardlang.plan.moments import Phase
from shardlang.plan.render import render_plan
from shardlang.plan.render_comparison import render_comparison
from shardlang.plan.stage_types import PipelinePlan, Sent
from shardlang.plan.text import seconds_text
from shardlang.plan.totals import total_of
from shardlang.plan.transfer_calls import transfer_calls
from shardlang.spec import load_spec_text
from tests.plan.plans import HERE, plan

PP = """
mesh { pp = %d  dp = 2 }
model "models.py:stack"(layers = 4)
input x : f32[16, 12, 8] [dp, _, _]
pipeline pp { split "layers"  microbatches %d  schedule %s }
"""
TIED = """
mesh { pp = 2 }
model "models.py:tied"()
input ids : i64[8, 5] below 9 [_, _]
pipeline pp { split "layers"  microbatches 2  schedule %s }
"""
LAYER = 24 * 8 + 24 + 8 * 24 + 8
"""Parameters of a block."""


def planned(ranks: int = 4, microbatches: int = 4, schedule: str = "1f1b") -> Plan:
    """The plan of four blocks."""
    return plan(PP % (ranks, microbatches, schedule))


def stages_of(found: Plan) -> PipelinePlan:
    """What it says of the stages."""
    assert found.pipeline is not None
    return found.pipeline


def most_saved(memory: Memory) -> int:
    """The most bytes that are kept for backwards at any time."""
    return max(moment.held[Kind.SAVED] for moment in memory.moments)


def test_stages_have_their_modules_parameters_and_flops() -> None:
    rows = stages_of(planned()).stages
    assert [(row.stage, row.rank, row.modules) for row in rows] == [
        (i, i, (f"layers.{i}",)) for i in range(4)
    ]
    assert {(row.parameters, row.params_bytes) for row in rows} == {(LAYER, 4 * LAYER)}
    product = 2 * (2 * 12) * 8 * 24
    assert {row.flops[Work.FORWARD] for row in rows} == {2 * product}
    assert [row.flops[Work.BACKWARD] for row in rows] == [3 * product, *[4 * product] * 3]


def test_a_value_is_sent_to_the_stage_that_reads_it_and_its_gradient_back() -> None:
    rows = stages_of(planned()).transfers
    size = 2 * 12 * 8 * 4
    there = [(Sent.VALUE, f"layers.{i}.out", i, i + 1, 4, size, 4 * size) for i in range(3)]
    back = [(Sent.GRADIENT, name, b, a, *rest) for _, name, a, b, *rest in reversed(there)]
    found = [(r.what, r.name, r.source, r.target, r.count, r.bytes, r.step_bytes) for r in rows]
    assert found == [*there, *back]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("transfer over pp == 24", ""),
        ("forward transfer == 12", ""),
        ('backward transfer in "layers.1" == 4', ""),
        (f"bytes transfer <= {24 * 2 * 12 * 8 * 4}", ""),
        (f"bytes transfer < {24 * 2 * 12 * 8 * 4}", "SH0501"),
        ("bytes transfer == bound", ""),
        ("forbid transfer over pp", "SH0502"),
        ("forbid transfer over dp", ""),
        ("forbid backward any over pp", "SH0502"),
        ("any over pp == 26", ""),
        ("forward all_reduce over pp == 1", ""),
        ("bytes forward all_reduce over pp == 6", ""),
    ],
)
def test_transfers_are_expected_as_collectives_are(line: str, wanted: str) -> None:
    """Four microbatches pass three borders, there and back; the norm runs over `pp` too.

    So does the total of the losses: of four bytes a ring of four devices sends 2 * 3/4 each.
    """
    spec, findings = load_spec_text(f"{PP % (4, 4, '1f1b')}expect {{ {line} }}", str(HERE / "s"))
    assert spec is not None, findings
    assert [one.code for one in check_expects(spec, planned())] == [wanted] * bool(wanted)


def test_a_spec_without_a_pipeline_has_no_transfers() -> None:
    text = PP.replace("pipeline pp", "# ") % (4, 4, "1f1b")
    assert not list(transfer_calls(plan(text)))


def test_stages_of_one_rank_send_each_other_nothing() -> None:
    """In a V the second and the third stage lie on the last rank."""
    pairs = {(row.source, row.target) for row in stages_of(planned(2, 4, "zbv")).transfers}
    assert pairs == {(0, 1), (2, 3), (1, 0), (3, 2)}


def test_a_tied_parameter_is_sent_once_and_its_gradient_once() -> None:
    found = stages_of(plan(TIED % "1f1b"))
    tied = [row for row in found.transfers if row.count == 1]
    assert [(row.what, row.name, row.source, row.target, row.bytes) for row in tied] == [
        (Sent.PARAMETER, "table.weight", 0, 1, 9 * 6 * 4),
        (Sent.PARAMETER_GRADIENT, "table.weight", 1, 0, 9 * 6 * 4),
    ]
    assert sum(row.parameters for row in found.stages) == 9 * 6 + 4 * (6 * 6 + 6)
    assert not [row for row in stages_of(plan(TIED % "zbv")).transfers if row.count == 1]


class Shares(nn.Module):
    """Two blocks with a scale that is a number, of which the loss reads one; a counter; a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        for layer in self.layers:
            layer.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(3, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        for layer in self.layers:
            x = layer(x).tanh() * layer.scale
        loss: Tensor = x.square().mean() + 0.1 * self.layers[0].scale.square()
        return loss


SHARES = """
mesh { pp = 2 }
model "test_stages.py:Shares"()
input x : f32[8, 6] [_, _]
pipeline pp { split "layers"  microbatches 2 }
"""


def test_what_one_stage_has_and_all_need_is_an_all_reduce_of_each_value() -> None:
    """Two devices send all that they have: numbers of four bytes, and a counter of three.

    It is sent before the loss, behind it, and behind the gradients.
    """
    found = plan(SHARES)
    rows = [row for row in found.collectives if row.axes == ("pp",) and row.phase != "update"]
    assert [(r.phase, r.tensors, r.module, r.count, r.bytes, r.bound) for r in rows] == [
        ("forward", ("total 0",), "", 1, 4, 4),
        ("forward", ("layers.0.scale",), "layers.0", 1, 4, 4),
        ("forward", ("calls",), "", 1, 24, 24),
        ("backward", ("layers.0.scale",), "layers.0", 1, 4, 4),
        ("backward", ("layers.1.scale",), "layers.1", 1, 4, 4),
    ]
    assert {(row.op, row.stage) for row in rows} == {("all_reduce", None)}
    assert all(row.name != "calls" for row in stages_of(found).transfers)
    whole = plan_document(found)["collectives"]
    assert isinstance(whole, list) and [row.to_json() for row in rows] == whole[: len(rows)]


def test_the_bubble_beside_its_formula() -> None:
    """A forward takes 2 and a backward 4, of the first stage 3: its input wants no gradient.

    The last stage begins its backwards at 14, and the first one ends its own at 30 + 4 + 4 + 3.
    """
    found = {name: stages_of(planned(schedule=name)).bubble for name in ("gpipe", "1f1b", "zb_h1")}
    assert [one.formula for one in found.values()] == [3 / 4, 3 / 4, None]
    assert found["gpipe"].predicted == pytest.approx(4 * 41 / (4 * 23) - 1)
    assert found["zb_h1"].predicted < found["1f1b"].predicted


def test_the_formula_of_interleaved_stages() -> None:
    bubble = stages_of(planned(2, 4, "interleaved_1f1b(virtual = 2)")).bubble
    assert bubble.formula == 1 / 8
    assert bubble.text == "(p-1)/(v m)"


TIMED = """
mesh { pp = 2 over ib  tp = 2 %s }
model "models.py:stack"(layers = 2)
input x : f32[16, 12, 8] [_, _, _]
param "**.up.{weight,bias}" [tp, ...]
param "**.down.weight" [_, tp]
pipeline pp { split "layers"  microbatches 4  schedule gpipe }
cluster { peak f32 = 1e12  peak bf16 = 3e12 }
"""


def test_with_peaks_actions_and_transfers_take_seconds() -> None:
    """A forward waits for its all-reduce: the residual reads it. What is sent is a value's bytes.

    The first stage begins its first backward when the last forward of the second one, its backward
    and a transfer are done.
    """
    found = stages_of(plan(TIMED % "over nvlink"))
    size, products = 4 * 12 * 8 * 4, 2 * 2 * (4 * 12) * 8 * 12
    assert [row.bytes for row in found.transfers] == [size, size]
    forward_s, sent_s = products / 1e12 + size / 450e9, size / 50e9
    (first, second), spans = found.stages, found.timeline.spans
    assert first.seconds is not None and second.seconds is not None
    assert first.seconds[Work.FORWARD] == pytest.approx(forward_s)
    assert spans[Action.parse("1F0")].begin == pytest.approx(forward_s + sent_s)
    begin_s = spans[Action.parse("1F3")].end + second.seconds[Work.BACKWARD] + sent_s
    assert spans[Action.parse("0B0")].begin == pytest.approx(begin_s)
    assert (found.unit, found.without_link) == ("s", ())
    assert (
        plan_document(plan(TIMED % "over nvlink"))["stages"][0]["forward_s"]
        == (  # type: ignore[index]
            first.seconds[Work.FORWARD]
        )
    )


def test_what_takes_no_time_is_said() -> None:
    found = plan(TIMED % "")
    (first, _) = stages_of(found).stages
    assert first.seconds is not None
    assert first.seconds[Work.FORWARD] == pytest.approx(2 * 2 * (4 * 12) * 8 * 12 / 1e12)
    assert "no link is stated of tp: what is sent over it takes no time" in render_plan(found)
    assert "by flops; transfers take none" in render_plan(planned())
    assert stages_of(planned()).stages[0].seconds is None


def test_a_rank_of_1f1b_holds_fewer_microbatches_the_later_it_is() -> None:
    """Of each its input, the result of `up`, and that of gelu."""
    found = stages_of(planned(microbatches=8))
    assert found.in_flight == (4, 3, 2, 1)
    saved = [most_saved(memory) for memory in found.memories]
    assert saved[1] - saved[2] == 12 * (8 + 24 + 24) * 4


def test_gpipe_holds_all_microbatches_and_1f1b_no_more_with_more_of_them() -> None:
    peaks = {
        (name, count): most_saved(stages_of(planned(2, count, name)).memories[0]) * count
        for name in ("gpipe", "1f1b")
        for count in (4, 8)
    }
    assert peaks["gpipe", 8] == 2 * peaks["gpipe", 4]
    assert peaks["1f1b", 8] == peaks["1f1b", 4]


def test_the_fullest_rank_is_the_memory_of_the_plan() -> None:
    found = planned()
    memories = stages_of(found).memories
    assert found.memory.peak_bytes == max(one.peak_bytes for one in memories)
    assert all(one.params_bytes == one.gradients_bytes == 4 * LAYER for one in memories)
    assert all(one.peak_bytes == sum(one.peak.held.values()) for one in memories)


def test_calls_have_their_stage_and_the_busiest_rank_is_summed_up() -> None:
    found = planned()
    stages = [row.stage for row in found.select("all_reduce", Phase.BACKWARD, "dp")]
    assert set(stages) == {0, 1, 2, 3}
    document = json.loads(json.dumps(plan_document(found)))
    rank = busiest_rank(found)
    assert rank is not None
    assert sent_by(found, rank) == max(sent_by(found, other) for other in range(4))
    total = sum(row["bytes"] for ops in document["totals"].values() for row in ops.values())
    own = [row for row in document["collectives"] if row["stage"] in (None, rank)]
    assert total == sum(row["bytes"] for row in own)


def test_the_document_has_stages_transfers_and_the_bubble() -> None:
    document = json.loads(json.dumps(plan_document(planned())))
    assert [row["stage"] for row in document["stages"]] == [0, 1, 2, 3]
    assert {
        "rank", "modules", "parameters", "params_bytes", "forward_flops", "backward_flops",
        "peak_bytes", "in_flight", "busy",
    } <= document["stages"][0].keys()  # fmt: skip
    assert document["transfers"][0]["what"] == "value"
    assert document["bubble"]["formula"] == 0.75
    plain = plan_document(plan(PP.replace("pipeline pp", "# ") % (4, 4, "1f1b")))
    assert (plain["stages"], plain["transfers"], plain["bubble"]) == ([], [], None)


def test_a_comparison_has_the_sums_of_each_plan_by_itself() -> None:
    """Of one rank, with its transfers, not of all stages together."""
    staged, plain = planned(), plan(PP.replace("pipeline pp", "# ") % (4, 4, "1f1b"))
    rank = busiest_rank(staged)
    assert rank is not None
    found = compare(plain, staged)
    assert found.sent_bytes == sent_by(staged, rank) - total_of(plain.collectives).bytes
    assert sum(change.after.count for change in found.transfers) == 24
    text = render_comparison(found, "plain.shard", "staged.shard")
    assert max(map(len, text.split("\n"))) <= 80
    after, alone = (sent_rows(one) for one in (text, render_plan(staged)))
    phases = ("forward", "backward", "update")
    assert [after[name][1] for name in phases] == alone["all"][:3]
    assert [after[name][1] for name in ("all_reduce", "to other stages")] == [
        alone[name][3] for name in ("all_reduce", "to other stages")
    ]
    against = comparison_document(compare(staged, plain), "staged.shard")
    assert against["totals"] == plan_document(staged)["totals"]


def test_the_time_of_what_is_sent_is_that_of_the_busiest_rank() -> None:
    linked = PP.replace("%d  dp = 2", "%d over nvlink  dp = 2 over nvlink")
    found = plan(linked % (4, 4, "1f1b"))
    rank = busiest_rank(found)
    assert rank is not None
    shown = seconds_text(sent_by(found, rank) / BANDWIDTHS["nvlink"])
    assert f"estimate: {shown} on the links" in render_plan(found)


def sent_rows(text: str) -> dict[str, list[str]]:
    """The cells of the table of what the busiest device sends, by the name of their row."""
    table = text.partition("sent by the busiest device")[2].partition("\n\n")[0]
    rows = [re.split(r"  +", line.strip()) for line in table.split("\n")[2:]]
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b(virtual = 2)", "v_half"])
def test_the_text_fits_80_columns(schedule: str) -> None:
    text = render_plan(planned(2, 4, schedule))
    assert max(map(len, text.split("\n"))) <= 80
    assert "stages along pp" in text
    assert "of rank" in text
