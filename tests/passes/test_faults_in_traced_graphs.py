"""A fault planted after every pass of normalization is caught by an invariant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from shardlang.ir.compat import FakeTensorMode, ShapeEnv
from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import NodeInfo, info, set_info
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.graph_text import read_graph
from shardlang.passes.invariants.invariant import InvariantError
from shardlang.passes.normalize.normalize import NORMALIZE, TRACED
from shardlang.passes.run_passes import run_in_order
from tests.passes.test_planted_faults import Fault, Spoiled

aten = torch.ops.aten
functorch = torch._C._functorch

TEXT = """
graph
mesh tp = 2
w = param "w" trainable : f32[4, 3]
q = input "q" : f32[2, 3, 5, 4]
rows = input "rows" : bf16[16, 8]
matrices = input "matrices" : bf16[3, 8, 16]
ends = input "ends" : i32[3]
t = t(w) : f32[3, 4] strides [1, 3]
dropout = dropout(t, 0.25, True) : f32[3, 4]
attention = scaled_dot_product_attention(q, q, q, None, 0.25) : f32[2, 3, 5, 4]
product = _grouped_mm(rows, matrices, ends) : bf16[16, 16]
neg = neg(w) : f32[4, 3]
return output "0" dropout, output "1" attention, output "2" product, output "3" neg
"""


def named(graph: ShardGraph, name: str) -> fx.Node:
    return next(node for node in graph.graph.nodes if node.name == name)


def call(target: fx.node.Target, *names: object, **kwargs: object) -> Fault:
    """A call before the output: operands by name, and other arguments."""

    def fault(graph: ShardGraph) -> None:
        known = {node.name: node for node in graph.graph.nodes}
        args = tuple(known.get(one, one) if isinstance(one, str) else one for one in names)
        options = {k: known.get(v, v) if isinstance(v, str) else v for k, v in kwargs.items()}
        record = NodeInfo(value=info(named(graph, "w")).value)
        Rewriter(graph.graph).add(target, args, options, record=record, before=graph.output)

    return fault


def keep_a_body(graph: ShardGraph) -> None:
    with graph.graph.inserting_before(graph.output):
        graph.graph.get_attr("body")


def lose_a_shape(graph: ShardGraph) -> None:
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes):
        value = torch.empty(shapes.create_unbacked_symint())
    node = named(graph, "neg")
    set_info(node, replace(info(node), value=value))


def lose_a_result(graph: ShardGraph) -> None:
    graph.results.pop()


def forget_an_order(graph: ShardGraph) -> None:
    graph.info.draw_orders.clear()


def draw_in_rows(graph: ShardGraph) -> None:
    node = named(graph, "dropout")
    edit, kept = Rewriter(graph.graph), torch.contiguous_format
    node.args = (
        edit.call(aten.clone.default, node.args[0], memory_format=kept, like=node),
        *node.args[1:],
    )


def note_another_order(graph: ShardGraph) -> None:
    graph.info.draw_orders["dropout"] = (0, 1)


REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
ATTENTION = aten.scaled_dot_product_attention.default

FAULTS: list[tuple[str, Fault, str]] = [
    ("inline_regions", call(REGION, False, "w"), "regions_inlined"),
    ("inline_regions", keep_a_body, "regions_inlined"),
    ("drop_checks", call(aten._assert_async.default, "w"), "checks_dropped"),
    ("drop_checks", lose_a_shape, "checks_dropped"),
    ("expand_vmaps", call(functorch._vmap_increment_nesting, 3, "error"), "vmaps_expanded"),
    ("expand_vmaps", call(functorch._add_batch_dim, "w", 0, 1), "vmaps_expanded"),
    ("plain_draws", call(aten.rand.generator, [4], generator=None), "draws_plain"),
    ("plain_draws", call(aten.bernoulli_.float, "neg", 0.5), "draws_plain"),
    ("functionalize", call(aten.relu_.default, "neg"), "nothing_written"),
    ("functionalize", call(aten.copy_.default, "neg", "w"), "nothing_written"),
    ("functionalize", lose_a_result, "values_known"),
    ("expose_randomness", call(ATTENTION, "q", "q", "q", None, 0.5), "randomness_exposed"),
    ("expose_randomness", call(ATTENTION, "q", "q", "q", dropout_p=0.5), "randomness_exposed"),
    (
        "expose_groups",
        call(aten._grouped_mm.default, "rows", "matrices", "ends"),
        "groups_exposed",
    ),
    (
        "expose_groups",
        call(aten._grouped_mm.default, "rows", "matrices", offs="ends"),
        "groups_exposed",
    ),
    ("note_draw_orders", forget_an_order, "draw_orders_noted"),
    ("note_draw_orders", call(aten.dropout.default, "t", 0.5, True), "draw_orders_noted"),
    ("simplify", call(aten.alias.default, "w"), "spelled_one_way"),
    ("simplify", call(aten.zeros.default, [4], device=torch.device("cuda")), "spelled_one_way"),
    ("keep_draw_order", draw_in_rows, "draw_orders_kept"),
    ("keep_draw_order", note_another_order, "draw_orders_kept"),
    # what an earlier pass has established is checked after every later one
    ("keep_draw_order", call(aten.relu_.default, "w"), "nothing_written"),
]
"""Pass, fault, and the invariant that catches it."""


@pytest.mark.parametrize(("name", "fault", "invariant"), FAULTS)
def test_the_fault_is_caught(name: str, fault: Fault, invariant: str) -> None:
    spoiled = tuple(Spoiled(one, fault) if one.name == name else one for one in NORMALIZE)
    with pytest.raises(InvariantError, match=f"^after {name}, {invariant}: "):
        run_in_order(read_graph(TEXT), spoiled, TRACED)


def test_every_pass_has_two_faults() -> None:
    for one in NORMALIZE:
        assert sum(name == one.name for name, *_ in FAULTS) >= 2, one.name


def test_the_faults_alone_are_to_blame() -> None:
    run_in_order(read_graph(TEXT), NORMALIZE, TRACED)
