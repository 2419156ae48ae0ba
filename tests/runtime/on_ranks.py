"""What the collective tests run on every rank."""

from __future__ import annotations

import os
from typing import Any

import cases as known
import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.ir.mesh import Mesh
from shardlang.ir.reshard import Reshard
from shardlang.runtime.collectives import RunReshard, RunReshards
from shardlang.runtime.groups import Groups, join


def _world() -> dict[Mesh, Groups]:
    size = int(os.environ["WORLD_SIZE"])
    meshes = [known.LINE2] if size == 2 else [known.LINE4, known.GRID]
    first = join(meshes[0], timeout_s=30)
    return {mesh: Groups(mesh, first.rank) for mesh in meshes}


def _one(reshard: Reshard, groups: Groups) -> tuple[Tensor, Tensor | None]:
    """The result of a reshard on this rank, and the gradient of its operand."""
    x = known.strided(known.local_value(reshard.src, groups.coord, 1)).requires_grad_()
    y = RunReshard(reshard, groups)(x)
    y.backward(known.strided(known.local_value(reshard.dst, groups.coord, 2, dual=True)))
    return y.detach(), x.grad


def every_step() -> list[tuple[Tensor, Tensor | None]]:
    """Every case, one by one."""
    world = _world()
    return [_one(c.reshard, world[c.mesh]) for c in known.cases(dist.get_world_size())]


def every_bundle() -> list[list[tuple[Tensor, Tensor | None]]]:
    """Every bucket; the second tensor gets no gradient."""
    world = _world()
    found = []
    for mesh, reshards in known.buckets(dist.get_world_size()):
        at = world[mesh].coord
        xs = [known.local_value(reshard.src, at, 1).requires_grad_() for reshard in reshards]
        ys = RunReshards(reshards, world[mesh])(xs)
        grads = [known.local_value(reshard.dst, at, 2, dual=True) for reshard in reshards]
        used = [i for i in range(len(ys)) if i != 1]
        torch.autograd.backward([ys[i] for i in used], [grads[i] for i in used])
        found.append([(y.detach(), x.grad) for x, y in zip(xs, ys, strict=True)])
    return found


def other_types() -> dict[str, Any]:
    """Moves of values that are not float64, and maxima."""
    world = _world()
    mesh = next(iter(world))
    groups, axis = world[mesh], mesh.axes[0]
    n, me = axis.size, groups.coord[axis.name]
    flat, cut = known.lay((n, ())), known.lay((n, (axis,)))
    summed = known.lay((n, ()), partial=(axis,))
    out: dict[str, Any] = {}
    for dtype in (torch.bool, torch.int16, torch.int64, torch.uint8, torch.bfloat16, torch.float16,
                  torch.complex64):  # fmt: skip
        gathered = RunReshard(Reshard((axis,), cut, flat), groups)(torch.tensor([me % 2]).to(dtype))
        total = RunReshard(Reshard((axis,), summed, flat), groups)(torch.ones(n).to(dtype))
        mine = RunReshard(Reshard((axis,), summed, cut), groups)(torch.ones(n).to(dtype))
        out[str(dtype)] = (gathered, total, mine)
    for how in (ReduceOp.MAX, ReduceOp.MIN):
        extreme = RunReshard(Reshard((axis,), flat, flat, how), groups)
        out[how.value] = extreme(torch.arange(n) * (me + 1) - n)
    return out


def compiled() -> bool:
    """A row-parallel layer and a bucket, compiled whole, against the same in eager mode."""
    world = _world()
    groups = next(iter(world.values()))
    axis = groups.mesh.axes[0]
    picked = [
        case.reshard
        for case in known.cases(dist.get_world_size())[::9]
        if case.mesh == groups.mesh and case.reshard.src.shape not in ((), (0, 3))
    ]
    reshards = [RunReshard(reshard, groups) for reshard in picked]
    whole = known.lay((4, ()), (3, ()))
    varied = known.marked(whole, "R", (axis,))
    bucket = RunReshards([Reshard((axis,), whole, varied)] * 2, groups)
    inputs = [known.local_value(reshard.src, groups.coord, 1) for reshard in picked]

    def work(*xs: Tensor) -> Tensor:
        pair = bucket((xs[-1], 2 * xs[-1]))
        total = pair[0].sum() + pair[1].sum()
        return sum((reshard(x * x).sum() for reshard, x in zip(reshards, xs, strict=False)), total)

    results = []
    for function in (work, torch.compile(work, backend="aot_eager", fullgraph=True)):
        xs = [x.clone().requires_grad_() for x in [*inputs, torch.ones(4, 3, dtype=torch.double)]]
        loss = function(*xs)
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in xs)])
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def everything() -> dict[str, Any]:
    """All of the above, in one job."""
    return {
        "reshards": every_step(),
        "buckets": every_bundle(),
        "types": other_types(),
        "compiled": compiled() if dist.get_world_size() == 2 else None,
    }
