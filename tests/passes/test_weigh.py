"""Chains that are weighed: exactly, never for more bytes than layouts had flowed, and proven."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.passes.pipeline import PIPELINE, run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.passes.weigh.eliminate import LIMIT, NEVER, Table, cheapest, total_of
from shardlang.plan import make_plan
from shardlang.plan.totals import totals_of
from shardlang.plan.types import Plan
from shardlang.proof.prove import verify_compiled
from tests.proof.proving import compiled


def random_tables(rng: random.Random, sizes: list[int]) -> list[Table]:
    """Tables over one to three variables, some of whose joint choices cannot be."""
    found = []
    for _ in range(rng.randint(1, 10)):
        over = tuple(rng.sample(range(len(sizes)), rng.randint(1, min(3, len(sizes)))))
        shape = [sizes[variable] for variable in over]
        prices = [
            rng.choice([0, 1, 5, 7, NEVER, rng.randint(0, 99)]) for _ in range(math.prod(shape))
        ]
        found.append(Table(over, torch.tensor(prices).reshape(shape)))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_elimination_finds_the_least_of_all(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 4) for _ in range(rng.randint(1, 7))]
    tables = random_tables(rng, sizes)
    least = min(total_of(one, tables) for one in itertools.product(*map(range, sizes)))
    assert total_of(cheapest(sizes, tables), tables) == least


def test_a_long_chain_takes_the_way_round_a_dear_op() -> None:
    """2,000 ops in a row: a change costs 3, the second way of each op but one costs nothing."""
    count = 2000
    change = torch.tensor([[0, 3], [3, 0]])
    alone = [Table((i,), torch.tensor([1, 0] if i != 700 else [1, 9])) for i in range(count)]
    tables = [*alone, *(Table((i, i + 1), change) for i in range(count - 1))]
    chosen = cheapest([2] * count, tables)
    assert (chosen[700], sum(chosen), total_of(chosen, tables)) == (0, count - 1, 7)


def test_what_is_too_wide_keeps_its_first_option() -> None:
    count = 1 + int(math.log2(LIMIT))
    pairs = [
        Table((i, j), torch.zeros(2, 2, dtype=torch.int64)) for i in range(count) for j in range(i)
    ]
    alone = [Table((i,), torch.tensor([1, 0])) for i in range(count)]
    chosen = cheapest([2] * count, [*pairs, *alone])
    assert 1 <= count - sum(chosen) <= 2


NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 24, bias=False)
        self.b = nn.Linear(24, 6)
        self.c = nn.Linear(6, 6)
        self.g = nn.Parameter(torch.randn(6))

    def forward(self, x, z):
        {body}
        return (y * z).sum(), y
"""

SPEC = """
mesh {{ dp = 2 tp = 2 }}
model "model.py:Net"
input x : f32[{rows}, 5, 6] [{x}]
input z : f32[{rows}, 5, 6] [{z}]
"""

STEPS = (
    "y = self.b(F.gelu(self.a(y)))",
    "y = y + self.c(y)",
    "y = y * self.g",
    "y = F.layer_norm(y, (6,)) + z",
    "y = torch.cat([y[..., 3:], y[..., :3]], -1)",
    "y = y - y.mean(1, keepdim=True)",
    "y = torch.einsum('bsi,bti->bst', y, y).softmax(-1) @ y",
    "y = y.transpose(0, 1).reshape(5, -1, 6).transpose(0, 1)",
)
PARAMS = (
    'param "a.weight" [dp, _]', 'param "b.weight" [_, dp]', 'param "c.weight" [dp, _]',
    'param "a.weight" [tp, dp]', 'param "c.weight" [_, tp]', 'param "g" [tp]', 'store "**" over dp',
)  # fmt: skip
DIMS = ("dp, _, _", "dp, tp, _", "dp, _, tp", "_, dp, _", "dp*tp, _, _", "_, tp, dp")


def random_case(seed: int, folder: Path) -> Compiled:
    """A model of a few random steps with random statements."""
    rng = random.Random(seed)
    steps = [rng.choice(STEPS) for _ in range(rng.randint(1, 4))]
    body = "\n        ".join(["y = x", *steps])
    spec = SPEC.format(rows=rng.choice([4, 6, 7, 32]), x=rng.choice(DIMS), z=rng.choice(DIMS))
    spec += "\n".join(rng.sample(PARAMS, rng.randint(0, 3)))
    return compiled(folder, NET.format(body=body), spec)


def sent(plan: Plan) -> int:
    """Bytes of an optimizer step."""
    return sum(t.bytes for ops in totals_of(plan.collectives).values() for t in ops.values())


def without(done: Compiled) -> int:
    """Bytes of the program as layouts had flowed."""
    passes = tuple(one for one in PIPELINE if one.name != "weigh")
    graph = run_passes(build_graph(done.captured, done.statements), passes)
    return sent(make_plan(to_program(graph)))


@pytest.mark.parametrize("seed", range(16))
def test_no_chain_sends_more_than_it_would_have(seed: int, tmp_path: Path) -> None:
    done = random_case(seed, tmp_path)
    assert sent(make_plan(done.program)) <= without(done)
    report = verify_compiled(done)
    assert report.ok, report.first
