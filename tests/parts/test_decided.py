"""Axes that the compiler uses in parts: where, what that sends, and that it is proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.driver import Compiled
from shardlang.cost.step import leaf_bytes, step_bytes
from shardlang.plan import plan_of
from shardlang.plan.moments import Phase
from shardlang.plan.totals import total_of
from shardlang.proof.prove import verify_compiled
from tests.passes.test_query_heads import MODEL as ATTENTION
from tests.passes.test_query_heads import spec as attention
from tests.proof.proving import compiled

MODEL = (
    ATTENTION
    + """
class Reshape(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.w, self.heads = nn.Parameter(torch.randn(d, d) / 16), heads
        self.scale = nn.Parameter(torch.randn(heads))

    def forward(self, x):
        h = (x @ self.w).unflatten(-1, (self.heads, -1))
        h = torch.tanh(h * self.scale.unsqueeze(-1)).flatten(2).flatten(0, 1)
        return {"loss": (h * h).mean(), "y": h}


class GroupNorm(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.conv, self.groups = nn.Conv2d(c, c, 1, bias=False), groups
        self.w = nn.Parameter(torch.randn(c))

    def forward(self, x):
        n, c, h, w = x.shape
        y = self.conv(x).view(n, self.groups, -1)
        mean = y.mean(-1, keepdim=True)
        var = (y - mean).square().mean(-1, keepdim=True)
        y = ((y - mean) * torch.rsqrt(var + 1e-5)).view(n, c, h, w) * self.w[:, None, None]
        return {"loss": (torch.relu(y) * x).mean()}


class Picture(nn.Module):
    def __init__(self, c, groups, norm):
        super().__init__()
        self.up, self.down = nn.Conv2d(3, c, 1), nn.Conv2d(c, 2, 1)
        conv = nn.Conv2d(c, c, 3, padding=1, groups=groups)
        self.mid = nn.GroupNorm(groups, c) if norm else conv

    def forward(self, x):
        return {"loss": self.down(torch.tanh(self.mid(torch.tanh(self.up(x))))).square().mean()}


class Heads(nn.Module):
    def __init__(self, heads, size):
        super().__init__()
        self.heads, d = heads, heads * size
        self.q, self.o = nn.Linear(6, d), nn.Linear(d, 6)
        self.scale = nn.Parameter(torch.randn(heads))

    def forward(self, x):
        h = self.q(x).unflatten(-1, (self.heads, -1))
        h = torch.tanh(h * self.scale[:, None]) * h.sum(-1, keepdim=True)
        return {"loss": (self.o(h.flatten(2)) - x).square().mean()}
"""
)


def picture(model: str, devices: int) -> str:
    return f"""
    mesh {{ tp = {devices} }}
    model "model.py:Picture"({model})
    input x : f32[3, 3, 5, 4] [_, _, _, _]
    param "up.*"        [tp, ...]
    param "down.weight" [_, tp, ...]
    """


def heads(count: int, size: int, devices: int) -> str:
    return f"""
    mesh {{ tp = {devices} }}
    model "model.py:Heads"(heads = {count}, size = {size})
    input x : f32[3, 5, 6] [_, _, _]
    param "q.*"      [tp, ...]
    param "o.weight" [_, tp]
    """


RESHAPE = """
mesh { d = 8 }
model "model.py:Reshape"(d = 256, heads = 4)
input x : f32[8, 16, 256] [_, _, _]
param "w" [_, d]
output y [_, d]
"""
NORM = """
mesh { d = 8 }
model "model.py:GroupNorm"(c = 16, groups = 4)
input x : f32[4, 16, 16, 16] [_, d, _, _]
"""
CASES = {
    "4 heads over 8, XLA sends 23": (RESHAPE, "d:4 d/4", 11),
    "4 groups over 8 by another dim, XLA sends 58,383": (NORM, "d", 23_751),
    "4 heads over 8": (heads(4, 6, 8), "tp:4 tp/4", 754),
    "2 heads over 4": (heads(2, 5, 4), "tp:2 tp/2", 664),
    "6 heads over 4, as 2, 2, 1, 1": (heads(6, 2, 4), "tp", 540),
    "a norm of 3 groups over 6": (picture("c = 12, groups = 3, norm = true", 6), "tp:3 tp/3", 848),
    "a norm of 4 groups over 8": (picture("c = 16, groups = 4, norm = true", 8), "tp:4 tp/4", 888),
    "a convolution of 2 groups over 4": (
        picture("c = 12, groups = 2, norm = false", 4),
        "tp:2 tp/2",
        816,
    ),
    "2 key heads over 4": (
        attention("tp = 4", 'InAChild"(heads = 4, groups = 2)', "tp", "tp"),
        "tp:2 tp/2",
        848,
    ),
    "4 key heads beside 12, over 8": (
        attention("tp = 8", 'Attention"(heads = 12, groups = 4)', "tp", "tp"),
        "tp:4 tp/4",
        968,
    ),
    "3 key heads over 6": (
        attention("tp = 6", 'InAChild"(heads = 6, groups = 3)', "tp", "tp"),
        "tp:3 tp/3",
        928,
    ),
}


def axes(done: Compiled) -> str:
    return " ".join(axis.name for axis in done.program.mesh.axes)


@pytest.mark.parametrize("name", CASES)
def test_an_axis_is_used_in_parts_where_that_sends_less(tmp_path: Path, name: str) -> None:
    text, parts, sent = CASES[name]
    done = compiled(tmp_path, MODEL, text)
    rows = [row for row in plan_of(done).collectives if row.phase is not Phase.UPDATE]
    assert (axes(done), total_of(rows).bytes) == (parts, sent), rows
    assert step_bytes(done.program, train=True) == sent
    assert verify_compiled(done).ok


def test_key_heads_are_replicated_over_the_rest_of_the_axis(tmp_path: Path) -> None:
    """As they are where the two parts are stated; a group's gradients are summed in one call."""
    text, _, _ = CASES["2 key heads over 4"]
    done = compiled(tmp_path, MODEL, text)
    stated = compiled(tmp_path, MODEL, text.replace('{k,v}.weight" [tp', '{k,v}.weight" [tp:2'))
    assert done.program.text() == stated.program.text()
    plan = plan_of(done)
    layouts = {row.name: str(row.layout) for row in plan.tensors}
    assert layouts["k.weight"] == "[4@tp:2, 8]" and layouts["q.weight"] == "[8@tp, 8]"
    backward = [row for row in plan.collectives if row.phase == "backward"]
    assert [(row.op, row.axes, row.count) for row in backward] == [("all_reduce", ("tp/2",), 1)]


def test_a_whole_axis_stays_whole(tmp_path: Path) -> None:
    """Enough heads, and an axis that nothing stops: the program is that of no search."""
    done = compiled(tmp_path, MODEL, heads(8, 2, 4))
    assert axes(done) == "tp" and leaf_bytes(done.program) == 4 * (2 + 24 + 4 + 24 + 6 + 90)


BLOCK = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 24)
        self.q, self.k = nn.Linear(24, 24, bias=False), nn.Linear(24, 12, bias=False)
        self.v, self.o = nn.Linear(24, 12, bias=False), nn.Linear(24, 24, bias=False)

    def forward(self, x):
        x = torch.tanh(self.up(x))
        q, k, v = (f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return {"loss": (self.o(y.transpose(1, 2).flatten(2)) - x).square().mean()}
"""


def test_a_sum_over_both_parts_is_one_call(tmp_path: Path) -> None:
    """Few tokens: gradients of keys would be cheap to sum, but `x` would then be summed twice."""
    text = """
    mesh { tp = 8 }
    model "model.py:Block"
    input x : f32[1, 5, 8] [_, _, _]
    param "q.weight"     [tp, _]
    param "{k,v}.weight" [tp:4, _]
    param "o.weight"     [_, tp]
    """
    done = compiled(tmp_path, BLOCK, text)
    rows = [row for row in plan_of(done).collectives if row.phase == "backward"]
    assert sorted((row.op, row.axes, row.count) for row in rows) == [
        ("all_reduce", ("tp",), 1),
        ("all_reduce", ("tp/4",), 1),
    ]
    assert verify_compiled(done).ok
