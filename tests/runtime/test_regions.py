"""Results of a region have memory of their own where their ops say so, whatever compiled it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from shardlang.ir.compat import Results, backend_named, gives_new_memory
from shardlang.runtime.region import Regions
from shardlang.runtime.regions import Code, cut
from shardlang.runtime.step_executor import _Named

aten = torch.ops.aten
X = torch.linspace(-2, 3, 6).sin().view(2, 3)


def code() -> Code:
    """Two products that are equal, one that changes nothing, and two views of a third."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    products = [graph.call_function(aten.mul.Tensor, (x, n)) for n in (2, 2, 1)]
    third = graph.call_function(aten.neg.default, (x,))
    views = [graph.call_function(aten.t.default, (third,)) for _ in range(2)]
    graph.output((*products, *views))
    computed = {node: node.target for node in graph.nodes if node.op == "call_function"}
    return Code(graph, computed, {})


def sharing(module: fx.GraphModule, inputs: list[object]) -> Results:
    """A backend that gives equal ops one tensor, and an op that changes nothing its operand."""

    def run(values: list[Tensor]) -> tuple[Tensor, ...]:
        twice, turned = values[0] * 2, (-values[0]).t()
        return twice, twice, values.pop(), turned, turned

    return run


def alone(backend: object) -> list[Tensor]:
    """What the second call of the region gives."""
    made = cut(code(), Regions(backend), _Named)  # type: ignore[arg-type]
    run = fx.GraphModule({}, made)
    run(X)
    results: list[Tensor] = list(run(X))
    return results


@pytest.mark.parametrize("backend", [sharing, backend_named("inductor")])
def test_equal_ops_do_not_share_memory(backend: object) -> None:
    first, second, same, *views = alone(backend)
    before = X.clone()
    for x in (first, same):
        x.add_(5)
    torch.testing.assert_close(second, 2 * before, rtol=0, atol=0)
    torch.testing.assert_close(X, before, rtol=0, atol=0)
    assert [x.tolist() for x in views] == [(-before).t().tolist()] * 2


def test_views_of_one_value_are_not_copied() -> None:
    *_, one, other = alone(sharing)
    assert one.data_ptr() == other.data_ptr()


def test_a_graph_that_is_replayed_gives_no_new_memory() -> None:
    replays = torch._TorchCompileInductorWrapper(None, {"triton.cudagraphs": True}, False)
    assert not gives_new_memory(replays)
    assert not gives_new_memory(sharing)
    assert gives_new_memory(torch._TorchCompileInductorWrapper(None, None, False))
    assert all(gives_new_memory(backend_named(name)) for name in ("inductor", "aot_eager"))
