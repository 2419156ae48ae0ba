"""Where partial sums are reduced: the fewest bytes, and the numbers of the plain model."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.ir.graph import ShardGraph, sharding_of
from shardlang.ir.node import layout_of
from shardlang.passes.invariants.invariant import InvariantError, verify
from shardlang.passes.invariants.sums import partials_pass
from shardlang.passes.pipeline import PIPELINE, run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.passes.rewrite.partial_sums import Sums
from shardlang.passes.rewrite.place_reductions import pass_on
from shardlang.passes.rewrite.reduction_cut import ReductionCut
from shardlang.plan import make_plan
from shardlang.plan.totals import totals_of
from shardlang.plan.types import Plan
from shardlang.proof.prove import verify_compiled
from shardlang.proof.report import TOLERANCE
from tests.proof.proving import compiled

PLACE = [one.name for one in PIPELINE].index("place_reductions")

HEAD_OF_NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8, bias=False)
        self.b = nn.Linear(6, 8, bias=False)
        self.g = nn.Parameter(torch.randn(8))
        self.table = nn.Embedding(7, 8)
        self.up = nn.Parameter(torch.randn(5, 6, 4))
        self.gate = nn.Parameter(torch.randn(5, 6, 4))
        self.down = nn.Parameter(torch.randn(5, 4, 8))

    def forward(self, x, ids, z):
        product = torch.ops.shardlang.grouped_mm
        rows, groups = x.reshape(-1, 6), ids.reshape(-1) % 5
"""

SPEC = """
mesh { tp = 3 }
model "model.py:Net"
input x : f32[3, 5, 6] [_, _, _]
input ids : i64[3, 5] [_, _]
input z : f32[3, 5, 8] [_, _, _]
param "{a,b}.weight" [_, tp]
param "table.weight" [tp, _]
param "{up,gate,down}" [tp, ...]
"""


def net(result: str) -> str:
    """A model that returns one expression."""
    return f"{HEAD_OF_NET}        return {result}\n"


def calls(plan: Plan, phase: str) -> dict[str, int]:
    """How often each collective is called in a phase."""
    return {
        op: total.count for op, total in totals_of(plan.collectives)[phase].items() if total.count
    }


def sent(plan: Plan) -> int:
    """Bytes of an optimizer step."""
    return sum(t.bytes for ops in totals_of(plan.collectives).values() for t in ops.values())


def proven(folder: Path, result: str, spec: str = SPEC) -> Plan:
    """The plan of a model whose proof holds, with a gradient for every parameter that it uses."""
    done = compiled(folder, net(result), spec)
    report = verify_compiled(done)
    assert report.ok, report.first
    assert report.gradients and max(report.gradients.values()) < TOLERANCE
    return make_plan(done.program)


@pytest.mark.parametrize(
    ("result", "reduced"),
    [
        ("(self.a(x) * z).sum(1) + (self.b(x) * z).sum(1)", 1),
        ("self.a(x) + z", 1),
        ("(self.a(x) + z).sum(1)", 1),
        ("((self.a(x) + z).sum(1), self.a(x).relu())", 1),
        ("(self.a(x) + self.b(x)).chunk(2, -1)[0]", 1),
        ("(self.a(x) * self.b(x)).sum(1)", 2),
        ("F.gelu(self.table(ids)).sum(1)", 1),
        ("(F.silu(self.table(ids)) * self.table(ids)).sum(1) + self.a(x).sum(1)", 1),
        ("torch.sigmoid(self.table(ids)).sum(1)", 1),
    ],
)
def test_one_reduction_does_for_all_that_is_added(
    result: str, reduced: int, tmp_path: Path
) -> None:
    assert calls(proven(tmp_path, result), "forward")["all_reduce"] == reduced


@pytest.mark.parametrize("act", ["F.silu", "F.gelu", "torch.tanh", "F.relu"])
def test_between_the_products_of_an_expert_nothing_is_reduced(act: str, tmp_path: Path) -> None:
    """The derivative of these is not zero at zero; the gradients are right all the same."""
    gated = f"{act}(product(rows, self.up, groups)) * product(rows, self.gate, groups)"
    result = f"product({gated}, self.down, groups)"
    assert calls(proven(tmp_path, result), "forward") == {"all_reduce": 1}


def test_a_value_that_is_read_twice_passes_to_the_product_alone(tmp_path: Path) -> None:
    made = "F.silu(product(rows, self.up, groups))"
    result = f"(product({made}, self.down, groups), torch.sigmoid({made}).sum())"
    assert calls(proven(tmp_path, result), "forward")["all_reduce"] == 2


TWO_AXES = """
mesh { tp = 2 cp = 3 }
model "model.py:Net"
input x : f32[3, 5, 6] [_, cp, tp]
input ids : i64[3, 5] [_, cp]
input z : f32[3, 5, 8] [_, cp, _]
param "a.weight" [_, tp]
param "b.weight" [tp, _]
"""


def test_two_axes(tmp_path: Path) -> None:
    plan = proven(tmp_path, "(self.a(x) * z * self.g).sum(1)", TWO_AXES)
    assert calls(plan, "forward") == {"all_reduce": 1}


def test_a_result_keeps_its_layout_where_its_op_is_run_whole(tmp_path: Path) -> None:
    spec = SPEC.replace("z : f32[3, 5, 8] [_, _, _]", "z : f32[3, 5, 8] [tp, _, _]")
    done = compiled(tmp_path, net("(self.a(x) * z).sum(1)"), spec)
    (result,) = done.graph.result_nodes
    assert result is not None and str(layout_of(result)) == "[3@tp, 8]"


def before_the_pass(done: Compiled) -> ShardGraph:
    """The graph as the pass finds it."""
    return run_passes(build_graph(done.captured, done.statements), PIPELINE[:PLACE])


def finished(graph: ShardGraph) -> int:
    """Bytes of the program that the rest of the passes makes."""
    for one in PIPELINE[PLACE + 1 :]:
        graph = one.run(graph)
    return sent(make_plan(to_program(graph)))


def every_choice(done: Compiled) -> list[int]:
    """Bytes of the programs of all choices of ops that pass partial sums on over the one axis."""
    (axis,) = done.graph.mesh.axes
    found = []
    count = len(Sums.of(before_the_pass(done).graph.nodes, (axis,)).passing)
    for chosen in itertools.product((False, True), repeat=count):
        graph = before_the_pass(done)
        sums = Sums.of(graph.graph.nodes, (axis,))
        taken = dict(itertools.compress(sums.passing.items(), chosen))
        if all(how.rows is None for how in taken.values()):
            pass_on(ReductionCut(sums, taken=taken))
            found.append(finished(graph))
    return found


UNARY = ("{}.sum({d}, keepdim=True)", "{} * z", "{} * 0.5", "{}.relu()", "-{}", "{}[..., :2]")


def random_result(rng: random.Random) -> str:
    """Terms of two products, passed through a few ops and added."""
    terms = []
    for product in ("self.a(x)", "self.b(x)"):
        for _ in range(rng.randint(0, 2)):
            op = rng.choice(UNARY[:5])
            product = op.format(f"({product})", d=rng.choice([0, 1]))
        terms.append(product)
    total = f"({terms[0]} + {terms[1]})"
    last = rng.choice(["{}.sum(1)", "{} * self.g", "{}"])
    return last.format(total)


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_sends_fewer_bytes(seed: int, tmp_path: Path) -> None:
    split = SPEC.replace("8] [_, _, _]", "8] [tp, _, _]") if seed % 2 else SPEC
    done = compiled(tmp_path, net(random_result(random.Random(seed))), split)
    assert sent(make_plan(done.program)) == min(every_choice(done))


def test_an_op_that_may_not_pass_a_sum_is_named(tmp_path: Path) -> None:
    done = compiled(tmp_path, net("self.a(x).relu()"), SPEC)
    graph = before_the_pass(done)
    (axis,) = graph.mesh.axes
    node = next(n for n in graph.graph.nodes if n.name.startswith("relu"))
    sharding_of(node).linear[axis] = frozenset({0})
    with pytest.raises(InvariantError, match="partials_pass: relu: over `tp`"):
        verify(graph, "place_reductions", [partials_pass])


def test_a_product_of_other_groups_reads_no_disjoint_sum(tmp_path: Path) -> None:
    made = "product(rows, self.up, groups)"
    done = compiled(tmp_path, net(f"product({made}, self.down, groups.flip(0))"), SPEC)
    graph = before_the_pass(done)
    (axis,) = graph.mesh.axes
    node = next(n for n in graph.graph.nodes if n.name == "grouped_mm_1")
    sharding_of(node).linear[axis] = frozenset({0})
    with pytest.raises(InvariantError, match="rows of groups that are elsewhere"):
        verify(graph, "place_reductions", [partials_pass])
