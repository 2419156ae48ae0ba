"""The passes of normalization that read what no text shows: regions, and calls under `vmap`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shardlang.capture.naming import annotate
from shardlang.passes.errors import PassError
from shardlang.passes.normalize.expand_vmaps import ExpandVmaps
from shardlang.passes.normalize.inline_regions import InlineRegions
from shardlang.passes.normalize.normalize import traced_graph

Forward = Callable[[Tensor], Tensor]


class Model(nn.Module):
    """A forward as a module."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def calls(forward: Forward, *passes: InlineRegions | ExpandVmaps) -> list[str]:
    """The calls of a forward on `x : f32[4, 3]`, after some passes, without their names."""
    traced = torch.export.export(Model(forward), (torch.randn(4, 3),), strict=False).graph_module
    for part in (traced, *traced.children()):
        annotate(part.graph)
    graph = traced_graph(traced)
    for one in passes:
        graph = one.run(graph)
    graph.graph.eliminate_dead_code()
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.exp()
    return y * x


def within(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.exp()
        return y.neg()


def by_rows(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row.sum(0).exp())(x)


def by_elements(x: Tensor) -> Tensor:
    return torch.vmap(torch.vmap(lambda one: one.exp()))(x)


def branches(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


def test_what_a_region_makes_is_detached_for_its_readers_outside() -> None:
    found = ["aten.exp.default", "aten.detach.default", "aten.mul.Tensor"]
    assert calls(without_gradients, InlineRegions()) == found


def test_what_stays_in_a_region_is_not_detached() -> None:
    found = ["aten.exp.default", "aten.neg.default", "aten.detach.default"]
    assert calls(within, InlineRegions()) == found


def test_branches_are_refused() -> None:
    with pytest.raises(PassError, match="branches and loops cannot be sharded"):
        calls(branches, InlineRegions())


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (by_rows, ["aten.sum.dim_IntList", "aten.exp.default"]),
        (by_elements, ["aten.exp.default"]),
    ],
)
def test_what_runs_under_vmap_runs_on_batches(forward: Forward, found: list[str]) -> None:
    assert calls(forward, InlineRegions(), ExpandVmaps()) == found
