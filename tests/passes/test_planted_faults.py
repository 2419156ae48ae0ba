"""A fault planted after every pass is caught by an invariant, and the pass is named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import fx

from shardlang.capture import Captured
from shardlang.compiler.build import Statements, build_graph
from shardlang.compiler.driver import compile_spec
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import ShardGraph, constrain, reshard_of, result_layout, sharding_of
from shardlang.ir.implied import implied_factors
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import info, set_info, tensor_of
from shardlang.ir.program import apply_reshard, apply_reshards
from shardlang.ir.reshard import Reshard
from shardlang.passes.invariants.invariant import Invariant, InvariantError
from shardlang.passes.pipeline import PIPELINE, Pass, run_passes
from shardlang.passes.propagate.bind_rules import bind_node
from shardlang.rules.experts.local_routed import collect, dispatch
from shardlang.rules.same import is_pure
from shardlang.spec import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
Fault = Callable[[ShardGraph], None]


@functools.cache
def compiled(example: str) -> tuple[Captured, Statements]:
    """A traced and bound example."""
    spec, findings = load_spec(EXAMPLES / f"{example}.shard")
    assert spec is not None, findings
    done = compile_spec(spec, passes=())
    return done.captured, done.statements


@dataclass(frozen=True)
class Spoiled:
    """A pass that plants a fault after its work."""

    pass_: Pass
    fault: Fault

    @property
    def name(self) -> str:
        return self.pass_.name

    @property
    def establishes(self) -> tuple[Invariant, ...]:
        return self.pass_.establishes

    @property
    def retires(self) -> tuple[Invariant, ...]:
        return self.pass_.retires

    def run(self, graph: ShardGraph) -> ShardGraph:
        graph = self.pass_.run(graph)
        self.fault(graph)
        return graph


def nodes(graph: ShardGraph, name: str) -> list[fx.Node]:
    """The nodes whose names begin so."""
    return [node for node in graph.graph.nodes if node.name.startswith(name)]


def reshards(graph: ShardGraph, kind: str) -> list[fx.Node]:
    """The single reshards of one kind."""
    found = [node for node in graph.graph.nodes if node.target is apply_reshard]
    return [node for node in found if reshard_of(node).kind == kind]


def bypass(node: fx.Node) -> None:
    """Let the readers of a node read its operand."""
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)


def lose_value(name: str) -> Fault:
    def fault(graph: ShardGraph) -> None:
        node = nodes(graph, name)[0]
        set_info(node, replace(info(node), value=None))

    return fault


def forget_a_leaf(graph: ShardGraph) -> None:
    graph.leaves.pop()


def forget_a_rule(graph: ShardGraph) -> None:
    node = nodes(graph, "linear")[0]
    set_info(node, replace(info(node), sharding=None))


def bind_another_size(graph: ShardGraph) -> None:
    factors = sharding_of(nodes(graph, "linear")[0]).factors
    name = next(iter(factors))
    factors[name] = DimLayout.whole(factors[name].size + 1)


def forget_a_gradient(graph: ShardGraph) -> None:
    node = nodes(graph, "linear")[-1]
    set_info(node, replace(info(node), differentiable=False))


def state_in_equal_parts(graph: ShardGraph) -> None:
    """Split every stated dim evenly, whatever its units are."""
    for node in graph.graph.nodes:
        stated = info(node).stated
        if stated is not None:
            dims = tuple(
                DimLayout.shard(d.size, d.axes) if d.axes else d for d in stated.layout.dims
            )
            even = replace(stated, layout=Layout(dims, stated.layout.partial))
            set_info(node, replace(info(node), stated=even))


def state_another_shape(graph: ShardGraph) -> None:
    node = next(node for node in graph.graph.nodes if info(node).stated is not None)
    stated = info(node).stated
    assert stated is not None
    dims = (DimLayout.whole(1), *stated.layout.dims)
    set_info(node, replace(info(node), stated=replace(stated, layout=Layout(dims))))


def split_two_factors(graph: ShardGraph) -> None:
    node = next(n for n in nodes(graph, "linear") if sharding_of(n).axes())
    sharding = sharding_of(node)
    axis = sharding.axes()[0]
    free = next(n for n, d in sharding.factors.items() if not d.axes and d.size >= axis.size)
    sharding.factors[free] = DimLayout.shard(sharding.factors[free].size, (axis,))


def give_another_shape(graph: ShardGraph) -> None:
    """Make the value that a product reads one dim longer, and leave the product as it is."""
    node = nodes(graph, "linear")[-1].all_input_nodes[0]
    value = tensor_of(node)
    set_info(node, replace(info(node), value=value.new_empty((*value.shape, 1))))


def swap_operands(graph: ShardGraph) -> None:
    node = nodes(graph, "linear")[0]
    x, weight, *rest = node.args
    node.args = (weight, x, *rest)


def move_a_stated_dim(graph: ShardGraph) -> None:
    leaves = (node for node, _ in graph.placeholders())
    sharding = sharding_of(next(n for n in leaves if info(n).stated and result_layout(n).sharded))
    sharding.factors = {name: dim.without(dim.axes) for name, dim in sharding.factors.items()}


def stored(graph: ShardGraph) -> tuple[fx.Node, Leaf]:
    """A stored parameter that is split in use too."""
    return next(
        (node, leaf)
        for node, leaf in graph.placeholders()
        if leaf.store
        and any(u.target is constrain and result_layout(u).sharded for u in node.users)
    )


def store_elsewhere(graph: ShardGraph) -> None:
    """Keep the axes of storage alone."""
    node, leaf = stored(graph)
    sharding = sharding_of(node)
    sharding.factors = {name: dim.only(leaf.store) for name, dim in sharding.factors.items()}


def store_over_another_axis(graph: ShardGraph) -> None:
    vectors = (pair for pair in graph.placeholders() if len(pair[1].shape) == 1)
    node, leaf = next((node, leaf) for node, leaf in vectors if leaf.store)
    other = next(axis for axis in graph.mesh.axes if axis not in leaf.store)
    sharding = sharding_of(node)
    sharding.factors = {n: DimLayout.shard(d.size, (other,)) for n, d in sharding.factors.items()}


def forget_a_record(graph: ShardGraph) -> None:
    del graph.info.layouts[graph.leaves[0].node]


def record_another_layout(graph: ShardGraph) -> None:
    node = next(node for node, _ in graph.placeholders() if result_layout(node).sharded)
    graph.info.layouts[node.name] = Layout.whole(result_layout(node).shape)


def split_what_needs_lowering(graph: ShardGraph) -> None:
    node = next(n for n in graph.ops() if sharding_of(n).rule.lowered)
    sharding = sharding_of(node)
    name = next(iter(sharding.rule.lowered))
    axis = graph.mesh.axes[0]
    cleared = {n: dim.without((axis,)) for n, dim in sharding.factors.items()}
    sharding.factors = {**cleared, name: DimLayout.shard(cleared[name].size, (axis,))}


def compute_twice(graph: ShardGraph) -> None:
    """A second call of the same, for one of two readers."""
    node = next(n for n in graph.graph.nodes if is_pure(n) and len(n.users) > 1)
    with graph.graph.inserting_after(node):
        made = graph.graph.node_copy(node)
    set_info(made, info(node))
    reader = list(node.users)[-1]
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is reader)


def compute_for_nobody(graph: ShardGraph) -> None:
    """A call that nothing reads."""
    node = next(n for n in graph.graph.nodes if is_pure(n))
    with graph.graph.inserting_after(node):
        made = graph.graph.call_function(torch.ops.aten.neg.default, (node,))
    set_info(made, info(node))
    bind_node(made)
    sharding = sharding_of(made)
    sharding.factors = implied_factors(sharding.rule, [result_layout(node)])


def drop_a_collect(graph: ShardGraph) -> None:
    node = next(node for node in graph.graph.nodes if node.target is collect)
    bypass(node)


def dispatch_twice(graph: ShardGraph) -> None:
    node = next(node for node in graph.graph.nodes if node.target is dispatch)
    with graph.graph.inserting_after(node):
        again = graph.graph.call_function(dispatch, (node, *node.args[1:]), node.kwargs)
    set_info(again, replace(info(node), sharding=sharding_of(node)))
    node.replace_all_uses_with(again, delete_user_cb=lambda user: user is not again)


def pass_partials_through(name: str, slots: set[int]) -> Fault:
    def fault(graph: ShardGraph) -> None:
        node = nodes(graph, name)[0]
        axis = next(a for a in graph.mesh.axes if sharding_of(node).factor_of(a) is None)
        sharding_of(node).linear[axis] = frozenset(slots)

    return fault


def drop_a_reshard(kind: str) -> Fault:
    def fault(graph: ShardGraph) -> None:
        last = reshards(graph, kind)[0]
        bypass(last)

    return fault


def return_a_partial_sum(graph: ShardGraph) -> None:
    node = reshards(graph, "all_reduce")[0]
    graph.output.args = ((node.args[0], *graph.result_nodes[1:]),)


def claim_another_axis(graph: ShardGraph) -> None:
    node = reshards(graph, "all_reduce")[0]
    reshard = reshard_of(node)
    other = next(axis for axis in graph.mesh.axes if axis not in reshard.axes)
    node.args = (node.args[0], Reshard((other,), reshard.src, reshard.dst))


def replicate_a_leaf(graph: ShardGraph) -> None:
    """A parameter whose gradient would be left as summands."""
    leaf, _ = next(graph.placeholders())
    layout = Layout(
        result_layout(leaf).dims,
        frozenset(),
        frozenset(graph.mesh.axes) - {*result_layout(leaf).sharded},
    )
    set_info(leaf, replace(info(leaf), layout=layout))


def forget_a_layout(graph: ShardGraph) -> None:
    node = nodes(graph, "linear")[0]
    set_info(node, replace(info(node), layout=None))


def bucket(graph: ShardGraph) -> fx.Node:
    return next(node for node in graph.graph.nodes if node.target is apply_reshards)


def swap_in_a_bucket(graph: ShardGraph) -> None:
    values, several = bucket(graph).args
    bucket(graph).args = (values[::-1], several)


def mix_a_bucket(graph: ShardGraph) -> None:
    """A reshard of another kind in the bucket."""
    values, several = bucket(graph).args
    first = several[0]
    other = replace(first, dst=first.src, src=first.dst)
    bucket(graph).args = (values, (other, *several[1:]))


def gathers(graph: ShardGraph) -> fx.Node:
    """The last bucket of gathers."""
    return [node for node in graph.graph.nodes if node.target is apply_reshards][-1]


def keep_a_gradient_whole(graph: ShardGraph) -> None:
    """Let one gather of a bucket make an invariant value, whose gradient is not summed."""
    node = gathers(graph)
    values, several = node.args
    first = several[0]
    whole = Layout(first.dst.dims, first.dst.partial)
    node.args = (values, (replace(first, dst=whole), *several[1:]))
    set_info(node, replace(info(node), layout=(whole, *info(node).layout[1:])))


def send_a_value(graph: ShardGraph) -> None:
    """Take what an op made into a bucket of gathers."""
    node = gathers(graph)
    values, several = node.args
    with graph.graph.inserting_before(node):
        made = graph.graph.call_function(torch.ops.aten.exp.default, (values[0],))
    set_info(made, info(values[0]))
    bind_node(made)
    sharding = sharding_of(made)
    sharding.factors = implied_factors(sharding.rule, [several[0].src.unlabelled()])
    node.args = ((made, *values[1:]), several)


def keep_a_constraint(graph: ShardGraph) -> None:
    node = nodes(graph, "linear")[0]
    with graph.graph.inserting_after(node):
        made = graph.graph.call_function(constrain, (node,))
    set_info(made, info(node))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def keep_a_global_size(graph: ShardGraph) -> None:
    """Give a view its global sizes again."""
    for node in [*nodes(graph, "view"), *nodes(graph, "reshape"), *nodes(graph, "unflatten")]:
        if sharding_of(node).axes():
            node.args = (node.args[0], list(tensor_of(node).shape))
            return
    raise AssertionError("no view is split")


FAULTS: list[tuple[str, str, Fault, str]] = [
    ("bind_rules", "megatron_mlp/mlp", lose_value("linear"), "records_complete"),
    ("bind_rules", "megatron_mlp/mlp", forget_a_rule, "rules_fit"),
    ("bind_rules", "megatron_mlp/mlp", bind_another_size, "rules_fit"),
    ("bind_rules", "megatron_mlp/mlp", forget_a_gradient, "gradients_marked"),
    ("align_units", "uneven/heads", state_in_equal_parts, "units_whole"),
    ("align_units", "megatron_mlp/mlp", state_another_shape, "statements_valid"),
    ("propagate", "megatron_mlp/mlp", split_two_factors, "one_factor_per_axis"),
    ("propagate", "megatron_mlp/mlp", move_a_stated_dim, "statements_kept"),
    ("place_storage", "llama/fsdp_tp", store_elsewhere, "storage_kept"),
    ("place_storage", "llama/fsdp_tp", store_over_another_axis, "storage_kept"),
    ("record_layouts", "megatron_mlp/mlp", forget_a_record, "layouts_recorded"),
    ("record_layouts", "megatron_mlp/mlp", record_another_layout, "layouts_recorded"),
    ("lower", "llama/fsdp_tp", split_what_needs_lowering, "nothing_to_lower"),
    ("lower", "llama/fsdp_tp", forget_a_gradient, "gradients_marked"),
    ("merge_duplicates", "llama/fsdp_tp", compute_twice, "nothing_twice"),
    ("merge_duplicates", "llama/fsdp_tp", compute_for_nobody, "everything_read"),
    ("route_rows", "moe/routed", drop_a_collect, "orders_kept"),
    ("route_rows", "moe/routed", dispatch_twice, "orders_kept"),
    ("place_reductions", "llama/fsdp_tp", pass_partials_through("rsqrt", {0}), "partials_pass"),
    ("place_reductions", "llama/fsdp_tp", pass_partials_through("add", {0}), "partials_pass"),
    ("insert_reshards", "megatron_mlp/mlp", drop_a_reshard("all_reduce"), "operands_in_place"),
    ("insert_reshards", "megatron_mlp/mlp", return_a_partial_sum, "results_settled"),
    ("insert_reshards", "llama/fsdp_tp", claim_another_axis, "reshards_change_one_thing"),
    ("type_gradients", "megatron_mlp/mlp", drop_a_reshard("vary"), "types_hold"),
    ("type_gradients", "megatron_mlp/mlp", replicate_a_leaf, "leaves_and_results_settled"),
    ("type_gradients", "megatron_mlp/mlp", forget_a_layout, "layouts_labelled"),
    ("fuse_collectives", "megatron_mlp/mlp", swap_in_a_bucket, "buckets_alike"),
    ("fuse_collectives", "megatron_mlp/mlp", mix_a_bucket, "buckets_alike"),
    ("fuse_collectives", "llama/fsdp_tp", keep_a_gradient_whole, "buckets_alike"),
    ("fuse_collectives", "llama/fsdp_tp", send_a_value, "buckets_alike"),
    ("localize", "megatron_mlp/mlp", keep_a_constraint, "constraints_met"),
    # what has held before the pass, and is looked at again where the pass has touched it
    ("align_units", "megatron_mlp/mlp", swap_operands, "rules_fit"),
    ("place_storage", "megatron_mlp/mlp", split_two_factors, "one_factor_per_axis"),
    ("record_layouts", "megatron_mlp/mlp", forget_a_rule, "rules_fit"),
    ("lower", "megatron_mlp/mlp", bind_another_size, "rules_fit"),
    ("merge_duplicates", "llama/fsdp_tp", split_what_needs_lowering, "nothing_to_lower"),
    ("place_reductions", "megatron_mlp/mlp", give_another_shape, "rules_fit"),
    ("fuse_collectives", "megatron_mlp/mlp", split_two_factors, "one_factor_per_axis"),
    ("localize", "llama/fsdp_tp", keep_a_global_size, "local_shapes_fit"),
]
"""Pass, example, fault, and the invariant that catches it."""


@pytest.mark.parametrize(("name", "example", "fault", "invariant"), FAULTS)
def test_the_fault_is_caught(name: str, example: str, fault: Fault, invariant: str) -> None:
    spoiled = tuple(Spoiled(one, fault) if one.name == name else one for one in PIPELINE)
    with pytest.raises(InvariantError, match=f"^after {name}, {invariant}: "):
        run_passes(build_graph(*compiled(example)), spoiled)


def test_every_pass_has_two_faults() -> None:
    for one in PIPELINE:
        if one.establishes:
            assert sum(name == one.name for name, *_ in FAULTS) >= 2, one.name


def test_the_faults_alone_are_to_blame() -> None:
    for example in sorted({example for _, example, _, _ in FAULTS}):
        run_passes(build_graph(*compiled(example)))


@dataclass(frozen=True)
class Retiring:
    """A pass that retires an invariant."""

    gone: Invariant
    name: str = "retiring"
    establishes: ClassVar[tuple[Invariant, ...]] = ()

    @property
    def retires(self) -> tuple[Invariant, ...]:
        return (self.gone,)

    def run(self, graph: ShardGraph) -> ShardGraph:
        return graph


def test_what_does_not_hold_is_not_retired() -> None:
    late = PIPELINE[-1].establishes[0]
    with pytest.raises(InvariantError, match="does not hold before it"):
        run_passes(build_graph(*compiled("megatron_mlp/mlp")), (Retiring(late),))
