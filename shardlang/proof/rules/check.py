"""One call under one assignment: the sharded program in the simulator against the plain op."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import tree_map_only
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import ShardGraph, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import NodeInfo, info, set_info, tensor_of
from shardlang.ir.program import LocalProgram
from shardlang.ir.program import differentiable as ends_of
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.rule import Rule, Sharding
from shardlang.ir.shards import shard_of
from shardlang.passes.pipeline import REWRITE
from shardlang.passes.propagate.bind_rules import BindRules
from shardlang.passes.rewrite.localize import to_program
from shardlang.passes.step.write_step import write_step
from shardlang.proof.distance import gap, size
from shardlang.proof.draws import Parts, parts_of
from shardlang.proof.rules.assignments import Assignment
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.reference import PARTS, SEED, Reference, dense
from shardlang.rules.registry import find
from shardlang.rules.schema import Operator
from shardlang.rules.streams import stream_key
from shardlang.runtime.simulate import PerDevice
from shardlang.runtime.simulate_step import StepSimulator


class MismatchError(AssertionError):
    """The sharded program gives other numbers than the op."""


@dataclass(slots=True)
class Case:
    """A call, its rule, and its results and gradients on one device.

    `partial` operands are sums over a leading dim of `PARTS` summands.
    """

    call: AtenCall
    fake: FakeTensorMode = field(default_factory=FakeTensorMode)
    references: dict[frozenset[int], Reference] = field(default_factory=dict)

    def node(self, fast: bool = False) -> fx.Node:
        """The call as a node that is bound to its rule; if `fast`, where shards draw apart."""
        graph, node = build(self, frozenset(), None)
        graph.fast_random = fast
        BindRules().run(graph)
        return node

    def rule(self, fast: bool = False) -> Rule:
        """The rule of the call; if `fast`, where shards draw apart."""
        return sharding_of(self.node(fast)).rule

    def reference(self, partial: frozenset[int]) -> Reference:
        """The op on one device, computed once for each set of partial operands."""
        if partial not in self.references:
            self.references[partial] = Reference(self.call, partial)
        return self.references[partial]


def build(
    case: Case, partial: frozenset[int], assignment: Assignment | None
) -> tuple[ShardGraph, fx.Node]:
    """The one-op graph of a case, and the op's node."""
    graph, nodes, leaves = fx.Graph(), [], []
    mesh = assignment.mesh if assignment is not None else Mesh(())
    reference = case.reference(partial)
    for i, x in enumerate(reference.leaves):
        node = graph.placeholder(f"x{i}")
        set_info(node, NodeInfo(case.fake.from_tensor(x)))
        trainable = reference.trainable[i]
        kind = LeafKind.PARAM if trainable else LeafKind.INPUT
        nodes.append(node)
        leaves.append(Leaf(f"x{i}", kind, node.name, x.dtype, Layout.whole(x.shape), trainable))
    fed = [
        _called(graph, case, torch.ops.aten.sum.dim_IntList, (leaf, [0]), {})
        if i in partial
        else leaf
        for i, leaf in enumerate(nodes)
    ]
    given = iter(fed)
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda _: next(given), (case.call.args, case.call.kwargs)
    )
    node = _called(graph, case, case.call.target, args, kwargs)
    done = _result_nodes(graph, node)
    graph.output(tuple(done))
    results = [
        Result(f"y{i}", ResultKind.OUTPUT, y.dtype, Layout.whole(y.shape))
        for i, y in enumerate(map(tensor_of, done))
    ]
    return ShardGraph(mesh, graph, leaves, results), node


def _called(graph: fx.Graph, case: Case, target: Operator, args: Args, kwargs: Kwargs) -> fx.Node:
    values, keywords = tree_map_only(fx.Node, lambda n: info(n).value, (args, kwargs))
    with torch.no_grad(), case.fake:
        made = target(*values, **keywords)
    assert isinstance(made, (Tensor, list, tuple))
    record = NodeInfo(made)
    return Rewriter(graph).add(target, args, kwargs, record=record)


def _result_nodes(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    val = info(node).value
    if isinstance(val, Tensor):
        return [node]
    found = []
    for index, item in enumerate(val or ()):
        if isinstance(item, Tensor):
            edit = Rewriter(graph)
            found.append(edit.add(operator.getitem, (node, index), record=NodeInfo(item)))
    return found


def program_of(
    case: Case, assignment: Assignment, sharding: Sharding, fast: bool = False
) -> LocalProgram:
    """The local program of a case under an assignment; if `fast`, shards draw apart."""
    partial = frozenset().union(*sharding.linear.values()) if sharding.linear else frozenset()
    graph, node = build(case, partial, assignment)
    graph.fast_random = fast
    BindRules().run(graph)
    own = sharding_of(node)
    own.rule = sharding.rule
    own.factors, own.linear = dict(sharding.factors), dict(sharding.linear)
    for i, (leaf, _) in enumerate(graph.placeholders()):
        _place_leaf(leaf, own.operand(i), i in partial)
    for one in REWRITE:
        graph = one.run(graph)
    return to_program(graph)


def _place_leaf(node: fx.Node, layout: Layout, partial: bool) -> None:
    """Lay out a leaf so that it reaches the op without a reshard."""
    sharding = sharding_of(node)
    for i, dim in enumerate(layout.dims):
        sharding.factors[f"d{i + partial}"] = dim
    if not partial:
        return
    axes = tuple(sorted(layout.partial))
    sharding.factors["d0"] = DimLayout.shard(PARTS, axes)
    (summed,) = node.users
    own = sharding_of(summed)
    own.factors = {name: sharding.factors[name] for name in own.factors}


def check(case: Case, assignment: Assignment, sharding: Sharding, fast: bool = False) -> None:
    """Compare results and gradients.

    Args:
        fast: shards draw apart.

    Raises:
        MismatchError: they differ.
    """
    partial = frozenset().union(*sharding.linear.values()) if sharding.linear else frozenset()
    program = program_of(case, assignment, sharding, fast)
    _check_program(program, _put_together(case, partial, program))


def modes_of(target: Operator) -> tuple[bool, ...]:
    """In which modes a call of an op is checked: `fast` or not."""
    declared = find(target)
    return (False, True) if declared is not None and declared.fast is not None else (False,)


def _put_together(case: Case, partial: frozenset[int], program: LocalProgram) -> Reference:
    """The plain op, or where shards draw apart, with their draws."""
    drawn = [node for node in program.graph.nodes if parts_of(node) is not None]
    if not drawn:
        return case.reference(partial)
    (node,) = drawn
    parts = Parts(node, program.mesh)
    return Reference(case.call, partial, lambda tensors: parts(stream_key(), *tensors))


def _check_program(program: LocalProgram, reference: Reference) -> None:
    """Run the step of a program in the simulator and compare it with its reference."""
    trained = [leaf.name for leaf in program.leaves if leaf.trainable]
    step = write_step(program, trained, ends_of(program))
    sim = StepSimulator(step)
    pairs = zip(program.leaves, reference.leaves, strict=True)
    local = {leaf.name: sim.place(x, leaf.layout) for leaf, x in pairs}
    ends = zip(program.results, reference.cotangents, strict=True)
    cotangents = {y.name: sim.place(x, y.layout) for y, x in ends}
    torch.manual_seed(SEED)
    results, found = sim.run(local, cotangents)
    for y, one, want in zip(results, program.results, reference.results, strict=True):
        _compare("result", y, one.layout, want, sim, reference, skip=reference.is_unset)
    for i, leaf in enumerate(program.leaves):
        _check_gradient(i, leaf, found.get(leaf.name), local[leaf.name], sim, reference)


def _check_gradient(
    index: int,
    leaf: Leaf,
    found: PerDevice | None,
    local: Sequence[Tensor],
    sim: StepSimulator,
    reference: Reference,
) -> None:
    """Compare the gradient of a leaf on every device; none at all is one of zeros."""
    want = reference.gradients[index]
    if want is None and found is None:
        return
    if want is None:
        want = torch.zeros_like(reference.leaves[index])
    found = [torch.zeros_like(x) for x in local] if found is None else [dense(x) for x in found]
    if want.isnan().any():
        found = _without_undefined(found, want, leaf.layout, sim)
    _compare(f"gradient of operand {index}", found, leaf.layout, want, sim, reference)


def _without_undefined(
    shards: Sequence[Tensor], want: Tensor, layout: Layout, sim: StepSimulator
) -> list[Tensor]:
    """Gradients with NaN wherever the op itself says that there is none."""
    holes = [shard_of(want.isnan(), layout, at) for at in sim.coords]
    return [
        x.masked_fill(hole, torch.nan) if x.shape == hole.shape else x
        for x, hole in zip(shards, holes, strict=True)
    ]


def _compare(
    what: str,
    shards: Sequence[Tensor],
    layout: Layout,
    want: Tensor,
    sim: StepSimulator,
    reference: Reference,
    skip: bool = False,
) -> None:
    """Compare shards with those of `want`; with `skip`, their shapes and dtypes alone."""
    scale, tolerance = max(1.0, size(want)), reference.tolerance
    for shard, at in zip(shards, sim.coords, strict=True):
        cut = shard_of(want.detach(), layout, at)
        if shard.shape != cut.shape or shard.dtype != cut.dtype:
            raise MismatchError(
                f"{what} at {at}: {shard.dtype}{list(shard.shape)}, "
                f"expected {cut.dtype}{list(cut.shape)}"
            )
        off = 0.0 if skip else gap(shard, cut) / scale
        if not off <= tolerance:
            raise MismatchError(f"{what} at {at} is off by {off:.3g} ({layout})")
