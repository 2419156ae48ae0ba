"""Checks a rule by cutting operands by hand, running the local op on every shard, and comparing.

One axis at a time, over every factor that may be split and every linear set: results and gradients
of the shards must be the shards of the op's results and gradients (the states are those of
`Layout`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from shardlang.ir.device_values import specialise
from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import NodeInfo, info, set_info, tensor_of
from shardlang.ir.rule import Rule, Sharding
from shardlang.ir.shards import shard_of
from shardlang.rules.call import Call
from shardlang.rules.op_rule import OpRule
from shardlang.rules.registry import find


def call_of(op: Any, *args: Any, **kwargs: Any) -> tuple[Call, list[Tensor]]:
    """The call as a graph node, and its tensor operands."""
    graph = fx.Graph()
    tensors: list[Tensor] = []

    def place(x: Tensor) -> fx.Node:
        node = graph.placeholder(f"x{len(tensors)}")
        set_info(node, NodeInfo(x))
        tensors.append(x)
        return node

    args, kwargs = pytree.tree_map_only(Tensor, place, (args, kwargs))
    node = graph.call_function(op, args, kwargs)
    set_info(node, NodeInfo(op(*_values((args, kwargs))[0], **_values((args, kwargs))[1])))
    call = Call(node)
    return call, [tensor_of(slot.node) for slot in call.slots]


def _values(tree: Any) -> Any:
    return pytree.tree_map_only(fx.Node, lambda node: info(node).value, tree)


def shardings(rule: Rule, axis: Axis, empty: bool) -> Iterator[Sharding]:
    """Every way to put one axis on the op; `empty`: also where some device holds nothing."""
    for name, _ in rule.sizes:
        group = {name, *(n for link in rule.linked if name in link for n in link)}
        if group & (rule.whole | rule.lowered):
            continue
        factors = {n: DimLayout.shard(s, (axis,) if n in group else ()) for n, s in rule.sizes}
        if empty or all(map(all_shards_nonempty, factors.values())):
            yield Sharding(rule, factors)
    for linear in rule.linear:
        whole = Sharding.whole(rule)
        whole.linear[axis] = linear
        yield whole


def check(
    op: Any, *args: Any, sizes: tuple[int, ...] = (2, 3), empty: bool = True, **kwargs: Any
) -> int:
    """Number of shardings of the call that were compared."""
    call, tensors = call_of(op, *args, **kwargs)
    declared = find(op)
    assert declared is not None, f"{op} has no rule"
    rule = declared.bind(call)
    count = 0
    for size in sizes:
        axis = Axis("a", size)
        for sharding in shardings(rule, axis, empty):
            _compare(declared, call, sharding, tensors, Mesh((axis,)))
            count += 1
    return count


def _shards(full: Tensor, layout: Layout, mesh: Mesh) -> list[Tensor]:
    """One shard on each device; random summands where the layout is partial."""
    if layout.partial:
        noise = [torch.randn_like(full) for _ in range(mesh.devices - 1)]
        return [*noise, full - sum(noise)]
    return [shard_of(full, layout, coord).clone() for coord in mesh.coords()]


def _compare(
    declared: OpRule, call: Call, sharding: Sharding, tensors: list[Tensor], mesh: Mesh
) -> None:
    layouts = [sharding.operand(i) for i in range(len(tensors))]
    cut = [_shards(x.detach(), at, mesh) for x, at in zip(tensors, layouts, strict=True)]
    target, args, kwargs = (
        declared.localize(call, sharding) if declared.localize else call.replace()
    )
    runs = []
    grads: list[list[Tensor | None]] = []
    full = _flat(info(call.node).value)
    seeds = [torch.randn_like(y) if y.is_floating_point() else y for y in full]
    for device, coord in enumerate(mesh.coords()):
        local = [shard[device].detach() for shard in cut]
        local = [x.requires_grad_(of.requires_grad) for x, of in zip(local, tensors, strict=True)]
        nodes = dict(zip((slot.node for slot in call.slots), local, strict=True))
        here_args, here_kwargs = pytree.tree_map_only(
            fx.Node, lambda n, nodes=nodes: nodes[n], specialise((args, kwargs), coord)
        )
        result = _flat(target(*here_args, **here_kwargs))
        runs.append(result)
        mine = [_seed(s, sharding.result(j), coord, device) for j, s in enumerate(seeds)]
        grads.append(_gradients(result, local, mine))
    for j, y in enumerate(full):
        _same(y.detach(), sharding.result(j), [run[j].detach() for run in runs], mesh, sharding)
    if declared.detached:
        return
    clean = [x.detach().requires_grad_(x.requires_grad) for x in tensors]
    swap = dict(zip((slot.node for slot in call.slots), clean, strict=True))
    target, args, kwargs = call.replace()
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: swap[n], (args, kwargs))
    for i, want in enumerate(_gradients(_flat(target(*args, **kwargs)), clean, seeds)):
        if want is not None:
            state = layouts[i]
            if state.partial:
                for got in grads:
                    torch.testing.assert_close(got[i], want)
            else:
                summed = Layout(state.dims, frozenset() if state.sharded else frozenset(mesh.axes))
                found = [_zero(got[i], x) for got, x in zip(grads, cut[i], strict=True)]
                _same(want, summed, found, mesh, sharding)


def _seed(seed: Tensor, layout: Layout, coord: dict[str, int], device: int) -> Tensor:
    """The gradient of a result: of a whole one, which is replicated, a summand."""
    if layout.sharded or layout.partial:
        return shard_of(seed, layout, coord)
    return seed if device == 0 else torch.zeros_like(seed)


def _zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def _same(
    full: Tensor, layout: Layout, shards: list[Tensor], mesh: Mesh, sharding: Sharding
) -> None:
    where = {name: str(dim) for name, dim in sharding.factors.items()}
    if layout.partial:
        total = torch.stack(shards).sum(0) if shards[0].dtype != torch.bool else shards[0]
        torch.testing.assert_close(total, full, msg=lambda m: f"{where}: {m}")
        return
    for coord, shard in zip(mesh.coords(), shards, strict=True):
        want = shard_of(full, layout, coord)
        note = f"{where} at {coord}: "
        torch.testing.assert_close(shard, want, equal_nan=True, msg=lambda m, note=note: note + m)


def _flat(result: Any) -> list[Tensor]:
    return [y for y in pytree.tree_leaves(result) if isinstance(y, Tensor)]


def _gradients(
    results: list[Tensor], inputs: list[Tensor], seeds: list[Tensor]
) -> list[Tensor | None]:
    pairs = [(y, s) for y, s in zip(results, seeds, strict=True) if y.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad([y for y, _ in pairs], wanted, [s for _, s in pairs], allow_unused=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]
