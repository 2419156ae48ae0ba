"""Grouped attention whose query heads are not split by the groups that share a key head."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.ir.dims import OpFactor
from shardlang.ir.graph import sharding_of
from shardlang.ir.node import layout_of
from shardlang.passes.pipeline import PROPAGATE
from shardlang.plan import plan_of
from shardlang.plan.totals import totals_of
from shardlang.proof.prove import verify_compiled
from shardlang.spec import load_spec_text
from tests.proof.proving import HEAD, compiled

MODEL = """
class Core(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Attention(nn.Module):
    def __init__(self, heads, groups):
        super().__init__()
        self.heads, self.groups = heads, groups
        self.q = nn.Linear(8, heads * 2, bias=False)
        self.k = nn.Linear(8, groups * 2, bias=False)
        self.v = nn.Linear(8, groups * 2, bias=False)
        self.out = nn.Linear(heads * 2, 8, bias=False)
        self.core = Core()

    def attend(self, *heads):
        return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (self.heads, 2)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (self.groups, 2)).transpose(1, 2) for f in (self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class InAChild(Attention):
    def attend(self, *heads):
        return self.core(*heads)
"""


def spec(mesh: str, model: str, query: str, keys: str = "_") -> str:
    """A spec of an attention, by the axes of its query heads and of its key heads."""
    return f"""
    mesh {{ {mesh} }}
    model "model.py:{model}
    input x : f32[3, 5, 8] [_, _, _]
    param "q.weight" [{query}, _]
    param "{{k,v}}.weight" [{keys}, _]
    param "out.weight" [_, {query}]
    """


def sent(done: Compiled) -> dict[str, dict[str, tuple[int, int]]]:
    """Calls and bytes by phase and collective."""
    totals = totals_of(plan_of(done).collectives)
    return {
        phase: {op: (one.count, one.bytes) for op, one in ops.items() if one.count}
        for phase, ops in totals.items()
    }


def heads_of(done: Compiled) -> str:
    """How the query heads of the attention lie."""
    (node,) = [n for n in done.graph.graph.nodes if "scaled_dot_product" in n.name]
    return str(layout_of(node).dims[1])


@pytest.mark.parametrize("model", ["Attention", "InAChild"])
def test_heads_split_wherever_the_call_stands(tmp_path: Path, model: str) -> None:
    """4 query heads and 2 key heads over 4 devices; no gather, in whichever module the call is."""
    done = compiled(tmp_path, MODEL, spec("tp = 4", f'{model}"(heads = 4, groups = 2)', "tp"))
    assert heads_of(done) == "4@tp" and verify_compiled(done).ok
    assert sent(done) == {
        "forward": {"all_reduce": (1, 720)},
        "backward": {"all_gather": (2, 128), "all_reduce": (2, 128)},
        "update": {},
    }


def test_a_stated_value_alone_splits_the_heads(tmp_path: Path) -> None:
    text = """
    mesh { tp = 4 }
    model "model.py:InAChild"(heads = 4, groups = 2)
    input x : f32[3, 5, 8] [_, _, _]
    value "q" [_, _, tp]
    """
    assert heads_of(compiled(tmp_path, MODEL, text)) == "4@tp"


def test_by_groups_nothing_is_repeated(tmp_path: Path) -> None:
    text = spec("kv = 2  g = 2", 'InAChild"(heads = 4, groups = 2)', "kv*g", "kv")
    done = compiled(tmp_path, MODEL, text)
    assert heads_of(done) == "4@kv*g"
    assert not [n for n in done.graph.graph.nodes if "repeat" in n.name]


def test_key_heads_are_split_as_far_as_groups_are_whole(tmp_path: Path) -> None:
    """8 query heads over 2 * 4 devices, 4 key heads over the 2: no key head leaves its half."""
    text = spec("a = 2  b = 4", 'InAChild"(heads = 8, groups = 4)', "a*b", "a")
    done = compiled(tmp_path, MODEL, text)
    assert heads_of(done) == "8@a*b" and verify_compiled(done).ok
    assert sent(done)["forward"] == {"all_reduce": (1, 840)}
    assert sent(done)["backward"] == {"all_gather": (2, 128), "all_reduce": (2, 128)}


def test_heads_that_do_not_divide(tmp_path: Path) -> None:
    """3 + 3 query heads read 2 + 1 key heads: the fewer ones are gathered."""
    text = spec("tp = 2", 'InAChild"(heads = 6, groups = 3)', "tp", "tp")
    done = compiled(tmp_path, MODEL, text)
    assert heads_of(done) == "6@tp" and verify_compiled(done).ok
    assert sent(done)["forward"] == {"all_gather": (2, 480), "all_reduce": (1, 480)}
    assert sent(done)["backward"] == {"reduce_scatter": (2, 480)}


def test_the_dimension_graph_follows_the_rule(tmp_path: Path) -> None:
    """Its factors of the attention are those of the rule that the attention has in the end."""
    text = spec("tp = 3", 'InAChild"(heads = 6, groups = 2)', "tp")
    (tmp_path / "model.py").write_text(HEAD + MODEL)
    found, _ = load_spec_text(text, str(tmp_path / "case.shard"))
    assert found is not None
    graph = compile_spec(found, passes=PROPAGATE).graph
    (node,) = [op for op in graph.dims.operands if "scaled_dot_product" in op.name]
    factors = {end.name for end in graph.dims.net if isinstance(end, OpFactor) and end.op is node}
    assert factors == {name for name, _ in sharding_of(node).rule.sizes}
    assert str(sharding_of(node).factors["h"]) == "6@tp"
