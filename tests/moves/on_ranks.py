"""The same cases on real process groups: every rank makes its part of the moves."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from shardlang.ir.mesh import Mesh
from shardlang.runtime.collectives import RunReshard, RunReshards, RunRoute
from shardlang.runtime.groups import Groups, join
from tests.moves.cases import ALL_KINDS, Case, case
from tests.moves.check import operands, unlike

CASES = 20 * len(ALL_KINDS)


def sample() -> tuple[int, list[str]]:
    """How many cases this rank has taken part in, and what of them is not as it means."""
    devices = int(os.environ["WORLD_SIZE"])
    worlds: dict[Mesh, Groups] = {}
    wrong: list[str] = []
    for number in range(CASES):
        drawn = case(number, devices)
        if not worlds:
            worlds[drawn.mesh] = join(drawn.mesh, timeout_s=60)
        rank = next(iter(worlds.values())).rank
        groups = worlds.setdefault(drawn.mesh, Groups(drawn.mesh, rank))
        wrong += _differences(drawn, groups)
    return CASES, wrong


def _differences(drawn: Case, groups: Groups) -> list[str]:
    rank = groups.rank
    xs = [operands(one)[rank] for one in drawn.ones]
    ys = _forward(drawn, xs, groups)
    flowing = [i for i, one in enumerate(drawn.ones) if one.grads]
    seeds = [(drawn.ones[i].grads or [])[rank] for i in flowing]
    roots, wanted = [ys[i] for i in flowing], [xs[i] for i in flowing]
    grads = torch.autograd.grad(roots, wanted, seeds) if roots else ()
    found = []
    for i, one in enumerate(drawn.ones):
        want, back = one.expected(drawn.mesh)
        found += [f"{drawn}: forward, {each}" for each in unlike([ys[i].detach()], [want[rank]])]
        if back:
            mine = [grads[flowing.index(i)]]
            found += [f"{drawn}: backward, {each}" for each in unlike(mine, [back[rank]])]
    return found


def _forward(drawn: Case, xs: list[Tensor], groups: Groups) -> list[Tensor]:
    first = drawn.ones[0]
    if first.by is not None:
        return [RunRoute(first.reshard, groups)(xs[0], first.known(groups.coord))]
    if len(xs) == 1:
        return [RunReshard(first.reshard, groups)(xs[0])]
    return list(RunReshards([one.reshard for one in drawn.ones], groups)(xs))
