"""Random experts on random meshes, every way tried on each: the numbers of the plain model."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from shardlang.api import Program
from shardlang.compiler.driver import compile_spec
from shardlang.ir.experts.route import Route
from shardlang.ir.experts.strategies import Strategy
from shardlang.passes.experts import route_rows
from shardlang.passes.experts.gather_rows import Gathering
from shardlang.proof.report import TOLERANCE
from shardlang.spec import Spec, load_spec_text
from tests.broad import sampled

HERE = Path(__file__).parent
SEEDS = 16
MESHES = {
    "ep = 2 as data": (["[ep, _, _]", "[_, ep, _]"], ["ep"]),
    "ep = 3 as data": (["[ep, _, _]", "[_, ep, _]"], ["ep"]),
    "dp = 2 as data ep = 2 as data": (
        ["[dp*ep, _, _]", "[ep*dp, _, _]", "[dp, ep, _]", "[ep, dp, _]"],
        ["ep", "dp", "dp*ep", "ep*dp"],
    ),
    "ep = 2 as data tp = 2": (["[ep, _, _]", "[_, ep, _]"], ["ep"]),
}
"""By mesh: the layouts of the input, and the axes of the experts."""


def random_spec(seed: int) -> Spec:
    """One layer of experts with random sizes and layouts."""
    rng = random.Random(seed)
    mesh = rng.choice(list(MESHES))
    layouts, splits = MESHES[mesh]
    count, biased = rng.randint(4, 7), rng.random() < 0.4
    arguments = [
        f"count = {count}", f"top = {rng.randint(1, 3)}", f"biased = {str(biased).lower()}",
        f'choice = "{rng.choice(["router", "router", "one", "last"])}"',
    ]  # fmt: skip
    split = rng.choice(splits)
    text = (
        f'mesh {{ {mesh} }}\nmodel "models.py:experts"({", ".join(arguments)})\n'
        f"input x : f32[{rng.randint(4, 7)}, {rng.randint(3, 6)}, 6] {rng.choice(layouts)}\n"
    )
    if "tp" in mesh:
        text += f'param "up" [{split}, _, tp(2)]\nparam "down" [{split}, tp, _]\n'
    else:
        text += f'param "{{up,down}}" [{split}, ...]\n'
    if biased and rng.random() < 0.7:
        text += f'param "bias" [{split}, _]\n'
    if rng.random() < 0.3:
        text += f'store "**" over {split.split("*")[0]}\n'
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, (text, findings)
    return spec


def prefer(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a way the cheapest where it is open."""
    dear = {Strategy.GATHER_EXPERTS: "experts_price", Strategy.ROUTE_ROWS: "route_price"}
    for other, name in dear.items():
        price = 0.0 if other == strategy else math.inf
        monkeypatch.setattr(route_rows, name, lambda _, price=price: price)
    if strategy == Strategy.GATHER_ROWS:
        monkeypatch.setattr(route_rows, "route_price", lambda _: 1e12)
    else:
        monkeypatch.setattr(Gathering, "of", lambda region: Gathering(region))


@pytest.mark.parametrize("seed", sampled(range(SEEDS), range(5)))
def test_every_way_gives_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for strategy in Strategy:
        with monkeypatch.context() as patch:
            prefer(strategy, patch)
            program = Program(compile_spec(random_spec(seed)))
        report = program.verify()
        assert report.ok, (strategy, report.first)
        assert report.gradients is not None
        assert max(report.gradients.values()) < TOLERANCE
        for found in program.local.info.strategies:
            closed = strategy is Strategy.GATHER_ROWS and found.closed
            assert found.taken is strategy or closed


def test_a_collect_that_does_not_put_rows_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardlang.runtime.routes.put_back", lambda rows, order: rows)
    text = (
        'mesh { ep = 2 as data }\nmodel "models.py:experts"()\ninput x : f32[7, 6] [ep, _]\n'
        'param "{up,down}" [ep, ...]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    report = Program(compile_spec(spec)).verify()
    assert not report.ok
    assert report.first is not None
    assert report.first.name == "mul_1", "the first value after the collect"


def test_a_gradient_that_goes_on_instead_of_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Route, "reversed", lambda route: route)
    text = (
        'mesh { ep = 2 as data }\nmodel "models.py:experts"(top = 1)\n'
        'input x : f32[8, 6] [ep, _]\nparam "{up,down}" [ep, ...]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    assert not Program(compile_spec(spec)).verify().ok
