"""What any program must send, by collective: ways of several steps, and the sums."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import fx

from shardlang.ir.graph import reshard_nodes
from shardlang.passes.graph_text import read_graph
from shardlang.plan import plan_document
from shardlang.plan.bounds import Bounds
from shardlang.plan.moments import Phase
from shardlang.plan.totals import bound_of
from tests.commands import shardlang
from tests.plan.plans import FSDP, HERE, SP, STACK, TP, plan

HEAD = """graph split
mesh a = 4, b = 2
loss "loss"
x = input "x" : f32[8, 24@a] stated
w = param "w" trainable : f32[16, 24@a]
h = linear(x, w) : f32[8, 16] +a split i: 24@a
"""


def shares(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """The bounds forward and backward, by node and place, of the steps that have one."""
    bounds = Bounds(list(reshard_nodes(read_graph(HEAD + text).graph)))

    def named(found: dict[tuple[fx.Node, int], int]) -> dict[str, int]:
        return {f"{node.name}.{place}": size for (node, place), size in found.items() if size}

    return named(bounds.forward), named(bounds.backward)


WHOLE = 8 * 16 * 4
"""Bytes of `h`."""
SLICED = """
whole = all_reduce[a](h) : f32[8, 16]
part = slice[a](whole) : f32[8@a, 16]
y = relu(part) : f32[8@a, 16]
"""
END = """
loss = sum.default(y) : f32[] +a
total = all_reduce[a](loss) : f32[]
return output "loss" total
"""


def test_a_sum_of_which_slices_are_read_has_the_bound_of_a_scatter() -> None:
    """The all-reduce sends 2 * 3/4; its gradient is gathered for the summands."""
    forward, backward = shares(SLICED + END)
    assert forward == {"whole.0": WHOLE * 3 // 4, "total.0": 2 * 4 * 3 // 4}
    assert backward == {"part.0": WHOLE * 3 // 4}


def test_a_sum_that_is_read_whole_as_well_has_its_own() -> None:
    read = "z = relu(whole) : f32[8, 16]\n"
    end = END.replace('"loss" total', '"loss" total, output "z" z')
    forward, _ = shares(SLICED + read + end)
    assert forward["whole.0"] == 2 * WHOLE * 3 // 4
    assert "part.0" not in forward


def test_a_roundabout_way_has_the_bound_of_the_straight_one() -> None:
    """To gather a dim and slice another is to trade them: 3/4 of a shard."""
    forward, _ = shares(
        """
        whole = all_gather[a](x) : f32[8, 24]
        part = slice[a](whole) : f32[8@a, 24]
        y = relu(part) : f32[8@a, 24]
        """
        + END
    )
    assert forward["whole.0"] == 8 * 24 * 4 // 4 * 3 // 4


def test_each_step_takes_what_it_sends_the_first_first() -> None:
    """A sum over b and a, one after the other: 2 * 7/8 in all, of which the first sends 2 * 1/2."""
    text = HEAD.replace("24@a", "24@a*b").replace("+a\n", "+a +b\n").replace(" +a s", " +a +b s")
    both = (
        text
        + """
        first = all_reduce[b](h) : f32[8, 16] +a
        whole = all_reduce[a](first) : f32[8, 16]
        y = relu(whole) : f32[8, 16]
        loss = sum.default(y) : f32[]
        return output "loss" loss
        """
    )
    steps = Bounds(list(reshard_nodes(read_graph(both).graph))).forward
    assert list(steps.values()) == [WHOLE, 2 * WHOLE * 7 // 8 - WHOLE]


@pytest.mark.parametrize("text", [TP, STACK, SP, FSDP])
def test_collectives_of_even_shards_are_at_their_bound(text: str) -> None:
    """Buckets of gradients included."""
    found = plan(text)
    assert [row.bound for row in found.collectives] == [row.bytes for row in found.collectives]
    sums = plan_document(found)["bound"]
    assert sums == {phase: sum(row.bytes for row in found.select(phase=phase)) for phase in Phase}


def test_uneven_shards_travel_as_large_as_the_largest() -> None:
    """A bias of 5 over 4 devices: 2 of each device are gathered, where 5 * 3/4 must go."""
    found = plan(FSDP.replace('stack"()', 'stack"(f = 5)'))
    assert [row.bytes - row.bound for row in found.select("all_gather")] == 3 * [24 - 15]


def test_a_plan_that_sends_more_than_stated_fails(tmp_path: Path) -> None:
    """`plan` says both figures and exits with 1; with a larger factor the line holds."""
    spec = tmp_path / "spec.shard"
    text = FSDP.replace('models.py:stack"()', f'{HERE}/models.py:stack"(f = 5)')
    spec.write_text(f"{text}let most = 1.01 expect {{ bytes all_gather <= most * bound }}")
    status, _, err = shardlang("plan", spec)
    found = plan(FSDP.replace('stack"()', 'stack"(f = 5)')).select("all_gather")
    sent, bound = sum(row.bytes for row in found), bound_of(found)
    assert status == 1
    assert f"is {sent}B, expected <= 1.01 * bound: " in err
    assert f"1.01 times {bound}B, what any program must send" in err
    assert "in `layers.0`, 288B (any program: 279B): 4 parameters" in err.split("note: ")[1]
    assert shardlang("plan", spec, "--set", "most=1.1")[0] == 0
