"""Finding the first value that differs, forward and then backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import info, is_ordered
from shardlang.ir.program import LocalProgram
from shardlang.ir.shards import shard_of
from shardlang.proof.compare import Simulated, scale_of
from shardlang.proof.differences import TOLERANCE, Mismatch
from shardlang.proof.distance import counts, gap
from shardlang.proof.reference import Reference
from shardlang.runtime.simulate import PerDevice


def first_difference(program: LocalProgram, reference: Reference) -> Mismatch | None:
    """The first value, in graph order, that differs; else the last whose gradient does.

    Values are matched by node name: ops keep their names through the passes. Rows in routed order
    are left out; a difference among them shows after their collect.
    """
    wanted = _reference_values(reference)
    mine, gradients = _simulated_values(program, reference)
    pairs = [(node, mine[node.name], wanted[node.name]) for node in program.graph.nodes
             if node.name in wanted and node.name in mine and not is_ordered(node)]  # fmt: skip
    for node, shards, want in pairs:
        for value, full, layout in _tensors(node, shards, want):
            error = _error(value, full, layout, program.mesh, summed=layout.partial)
            if error > TOLERANCE:
                return _mismatch(node, layout, error, backward=False)
    return _first_gradient(program, pairs, gradients)


def _reference_values(reference: Reference) -> dict[str, Argument]:
    env: dict[fx.Node, Argument] = {}
    leaves = reference.fresh_leaves()
    names = {leaf.node: leaf.name for leaf in reference.captured.leaves}
    torch.manual_seed(reference.seed)
    for node in reference.graph.nodes:
        if node.op == "placeholder":
            name = names[node.name]
            env[node] = leaves[name]
        elif node.op != "output":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            assert callable(node.target)
            env[node] = node.target(*args, **kwargs)
            _keep_gradient(env[node])
        else:
            _seed(dict(zip([r.name for r in reference.captured.results],
                           [env[n] if n is not None else None for n in node.args[0]], strict=True)),
                  reference)  # fmt: skip
    return {node.name: value for node, value in env.items()}


def _keep_gradient(value: object) -> None:
    for tensor in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
            tensor.retain_grad()


def _seed(results: Mapping[str, object], reference: Reference) -> None:
    names = list(reference.cotangents)
    if names:
        roots = [value for n in names if isinstance(value := results[n], Tensor)]
        torch.autograd.backward(roots, [reference.cotangents[n] for n in names])


def _simulated_values(
    program: LocalProgram, reference: Reference
) -> tuple[dict[str, PerDevice], dict[str, PerDevice]]:
    """The values of the program by name, and their gradients."""
    kept: dict[str, PerDevice] = {}

    def watch(node: fx.Node, values: PerDevice) -> None:
        kept[node.name] = values

    run = Simulated(program, reference, watch)
    adjoints = run.step.adjoints.items()
    return kept, {name: kept[gradient] for name, gradient in adjoints if gradient in kept}


def _tensors(
    node: fx.Node, shards: PerDevice, want: object
) -> Iterator[tuple[list[Tensor], Tensor, Layout]]:
    layout = info(node).layout
    if isinstance(want, Tensor) and isinstance(layout, Layout):
        yield shards, want, layout


def _error(
    shards: list[Tensor], want: Tensor, layout: Layout, mesh: Mesh, summed: frozenset[Axis]
) -> float:
    """Largest relative difference, shards summed over some axes first."""
    if not counts(want) or want.numel() == 0:
        return 0.0
    worst, scale = 0.0, scale_of(want, 0.0)
    for group in (
        mesh.groups(tuple(sorted(summed))) if summed else [[d] for d in range(mesh.devices)]
    ):
        total = shards[group[0]].detach()
        for device in group[1:]:
            total = total + shards[device].detach()
        cut = shard_of(want.detach(), layout, mesh.coord(group[0]))
        worst = max(worst, gap(total, cut) / scale)
    return worst


def _first_gradient(
    program: LocalProgram,
    pairs: list[tuple[fx.Node, PerDevice, Argument]],
    gradients: Mapping[str, PerDevice],
) -> Mismatch | None:
    """The value nearest to the loss whose gradient differs: R sums over its group."""
    for node, shards, want in reversed(pairs):
        layout = info(node).layout
        if not isinstance(want, Tensor) or want.grad is None or not isinstance(layout, Layout):
            continue
        mine = gradients.get(node.name) or [torch.zeros_like(p) for p in shards]
        error = _error(mine, want.grad, layout, program.mesh, summed=layout.varying)
        if error > TOLERANCE:
            return _mismatch(node, layout, error, backward=True)
    return None


def _mismatch(node: fx.Node, layout: Layout, error: float, *, backward: bool) -> Mismatch:
    return Mismatch(
        node.name,
        info(node).module,
        info(node).source,
        str(layout),
        error,
        backward,
    )
