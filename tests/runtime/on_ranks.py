"""What the collective tests run on every rank."""

from __future__ import annotations

import os
from typing import Any

import cases as known
import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.ir.compat import timeout_of
from shardlang.ir.mesh import Mesh
from shardlang.ir.reshard import Reshard
from shardlang.runtime.collectives import run_together
from shardlang.runtime.groups import Groups, join
from tests.ways import back, there


def _world() -> dict[Mesh, Groups]:
    size = int(os.environ["WORLD_SIZE"])
    meshes = [known.LINE2] if size == 2 else [known.LINE4, known.GRID]
    first = join(meshes[0], timeout_s=known.LIMIT_S)
    return {mesh: Groups(mesh, first.rank) for mesh in meshes}


def _one(reshard: Reshard, groups: Groups) -> tuple[Tensor, Tensor | None]:
    """The result of a reshard on this rank, and the gradient of its operand."""
    x = known.strided(known.local_value(reshard.src, groups.coord, 1))
    grad = known.strided(known.local_value(reshard.dst, groups.coord, 2, dual=True))
    return there(reshard, groups)(x), back(reshard, groups)(grad)


def every_step() -> list[tuple[Tensor, Tensor | None]]:
    """Every case, one by one."""
    world = _world()
    return [_one(c.reshard, world[c.mesh]) for c in known.cases(dist.get_world_size())]


def every_bundle() -> list[list[tuple[Tensor, Tensor | None]]]:
    """Every bucket; the second tensor gets no gradient."""
    world = _world()
    found = []
    for mesh, reshards in known.buckets(dist.get_world_size()):
        groups = world[mesh]
        xs = [known.local_value(reshard.src, groups.coord, 1) for reshard in reshards]
        ys = run_together([there(reshard, groups) for reshard in reshards], xs)
        used = [i for i in range(len(ys)) if i != 1]
        given = [known.local_value(reshards[i].dst, groups.coord, 2, dual=True) for i in used]
        made = run_together([back(reshards[i], groups) for i in used], given)
        grads: dict[int, Tensor] = dict(zip(used, made, strict=True))
        found.append([(y, grads.get(i)) for i, y in enumerate(ys)])
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
        gathered = there(Reshard((axis,), cut, flat), groups)(torch.tensor([me % 2]).to(dtype))
        total = there(Reshard((axis,), summed, flat), groups)(torch.ones(n).to(dtype))
        mine = there(Reshard((axis,), summed, cut), groups)(torch.ones(n).to(dtype))
        out[str(dtype)] = (gathered, total, mine)
    for how in (ReduceOp.MAX, ReduceOp.MIN):
        extreme = there(Reshard((axis,), flat, flat, how), groups)
        out[how.value] = extreme(torch.arange(n) * (me + 1) - n)
    return out


def limits() -> dict[str, list[float]]:
    """How long calls of each process group wait, in seconds, by mesh."""
    found: dict[str, list[float]] = {}
    for mesh, groups in _world().items():
        axis, every = mesh.axes[0], mesh.axes
        made = [groups.of((axis,)), groups.of(every), groups.of(every, "apart")]
        made.append(groups.pair(axis, 0, 1, "ahead"))
        open_groups = [one.process_group for one in made if one is not None]
        host = groups.on_host()
        open_groups += [host.process_group] if host is not None else []
        found[str(mesh)] = [timeout_of(one).total_seconds() for one in open_groups]
    return found


def everything() -> dict[str, Any]:
    """All of the above, in one job."""
    return {
        "reshards": every_step(),
        "buckets": every_bundle(),
        "types": other_types(),
        "limits": limits(),
    }
