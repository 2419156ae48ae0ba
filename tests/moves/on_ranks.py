"""The same cases on real process groups: every rank makes its part of the moves."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from shardlang.ir.mesh import Mesh
from shardlang.runtime.collectives import run_together
from shardlang.runtime.groups import Groups, join
from tests.moves.cases import ALL_KINDS, Case, case
from tests.moves.check import operands, unlike
from tests.ways import back, routed, there

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
    xs = [own[rank] for own in operands(drawn.ones)]
    ys = _moved(drawn, range(len(xs)), xs, groups)
    flowing = [i for i, one in enumerate(drawn.ones) if one.grads]
    seeds = [(drawn.ones[i].grads or [])[rank] for i in flowing]
    grads = _moved(drawn, flowing, seeds, groups, returning=True) if flowing else []
    found = []
    for i, one in enumerate(drawn.ones):
        want, back = one.expected(drawn.mesh)
        found += [f"{drawn}: forward, {each}" for each in unlike([ys[i]], [want[rank]])]
        if back:
            mine = [grads[flowing.index(i)]]
            found += [f"{drawn}: backward, {each}" for each in unlike(mine, [back[rank]])]
    return found


def _moved(
    drawn: Case, places: Sequence[int], xs: list[Tensor], groups: Groups, returning: bool = False
) -> list[Tensor]:
    """What some of the reshards make of values, or of gradients."""
    first = drawn.ones[0]
    if first.by is not None:
        way = routed(first.reshard, groups)[returning]
        return [way(xs[0], first.known(groups.coord))]
    direction = back if returning else there
    return run_together([direction(drawn.ones[i].reshard, groups) for i in places], xs)
