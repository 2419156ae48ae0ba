"""What reads beyond the edges of its shards: proven, by edges alone, and on real processes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import torch
from spawn import spawn
from torch.distributed.tensor import DTensor

import shardlang
from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.plan import plan_of
from shardlang.proof.prove import verify_compiled
from shardlang.spec import load_spec_text
from tests.graph_text import states, unlike
from tests.halos.reading import WAYS, build

HERE = Path(__file__).parent


ALL = " ".join(WAYS)
WITH_WHOLE = f"{ALL} repeated"
"""Also one that reads a whole value."""


def spec(ways: str, mesh: str = "sp = 4", axes: str = "sp", size: int = 22) -> str:
    """The model over a split dim that divides over no devices."""
    return f"""
    mesh {{ {mesh} }}
    model "{HERE / "reading.py"}:build"(ways = "{ways}")
    input x : f64[2, {size}, 4] [_, {axes}, _]
    """


def compiled(text: str) -> Compiled:
    loaded, found = load_spec_text(text, str(HERE / "case.shard"))
    assert loaded is not None, found
    return compile_spec(loaded)


def test_every_way_is_proven_and_nothing_is_gathered() -> None:
    done = compiled(spec(ALL))
    report = verify_compiled(done)
    assert report.ok
    assert {row.op for row in plan_of(done).collectives} == {"send_recv", "all_reduce"}


@pytest.mark.parametrize(
    ("ways", "mesh", "axes", "size"),
    [
        ("wide flip", "a = 2  b = 3", "b*a", 17),
        ("causal replicate", "a = 3  b = 2", "a*b", 7),
        ("reflect", "a = 2  b = 4", "a*b", 9),
        ("windows", "sp = 1", "sp", 9),
    ],
)
def test_edges_of_several_neighbours(ways: str, mesh: str, axes: str, size: int) -> None:
    """Halos wider than a shard, over two axes, and over one device; the text can be read back."""
    done = compiled(spec(ways, mesh, axes, size))
    assert verify_compiled(done).ok
    graph = build_graph(done.captured, done.statements)
    for after, state in states(lambda: (graph, done.spec)):
        assert unlike(after, state, long=True) is None, after


@functools.cache
def prepare() -> shardlang.Program:
    """The program of the ranks."""
    return shardlang.compile(Path(os.environ["SPEC"]))


def on_a_rank() -> dict[str, float]:
    """How far outputs and gradients of this rank are from those of the plain model."""
    module = prepare().load("cpu")
    torch.manual_seed(0)
    plain = build(WITH_WHOLE)
    module.load_state_dict(plain.state_dict())
    x = torch.randn(2, 22, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, should = module(**module.shard_inputs(x=x)), plain(x)
    ours["loss"].backward()
    should["loss"].backward()
    found = {"loss": (ours["loss"] - should["loss"]).abs().item()}
    for way in WITH_WHOLE.split():
        made = ours[way].full_tensor() if isinstance(ours[way], DTensor) else ours[way]
        found[way] = (made - should[way]).abs().max().item()
    for name, one in module.named_parameters():
        other = plain.get_parameter(name).grad
        found[name] = (one.grad.full_tensor() - other).abs().max().item()
    return found


def test_on_real_processes(tmp_path: Path) -> None:
    path = tmp_path / "case.shard"
    path.write_text(spec(WITH_WHOLE))
    job = "tests.halos.test_values:on_a_rank"
    for rank in spawn(job, 4, tmp_path, 240, prepared=1, SPEC=str(path)):
        assert len(rank) == 1 + len(WAYS) + 1 + 3
        assert max(rank.values()) < 1e-10, rank
