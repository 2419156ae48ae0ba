"""What a rule says of the rows that an op picks from a table, compared with what devices run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from shardlang.ir.compat import tree_leaves
from shardlang.ir.device_values import specialise
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import sharding_of
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.rule import Rule, Sharding
from shardlang.ir.shards import shard_of
from shardlang.ir.traits import Picks
from shardlang.rules.call import Call
from shardlang.rules.disjoint import own_rows_read
from shardlang.rules.registry import find

MESH = Mesh((Axis("a", 2),))


def wrong_picks(node: fx.Node, operands: list[Tensor], results: list[Tensor]) -> Iterator[str]:
    """Which rows of the results are not as `picks` says, on two devices that share the table.

    A device must make the rows that pick from its part, and zeros elsewhere, whatever the other
    rows of its operands hold.

    Args:
        node: the call, bound to its rule.
        operands: the tensors that it is called with.
        results: what the op gives for them.
    """
    rule = sharding_of(node).rule
    picks = rule.traits.picks
    if picks is None or rule.size(picks.table) < 2 or picks.table in rule.whole:
        return
    split = Sharding.whole(rule)
    split.factors[picks.table] = DimLayout.shard(rule.size(picks.table), MESH.axes)
    for coord in map(MESH.coord, range(MESH.devices)):
        mine = _picked(picks, split, operands, coord)
        try:
            made = _run(node, split, _spoiled(operands, rule, mine), coord)
        except IndexError as error:
            yield f"the op picks rows that the device has not: {error}"
            continue
        for place, (own, whole) in enumerate(zip(made, results, strict=True)):
            if own[~mine].any():
                yield f"result {place} has more than zeros in rows that pick from other devices"
            if not torch.allclose(own[mine], whole[mine], equal_nan=True):
                yield f"result {place} has other rows where they pick from the device's own shard"


def _picked(picks: Picks, split: Sharding, operands: list[Tensor], coord: Coord) -> Tensor:
    """Which rows pick from a device's shard."""
    table = split.factors[picks.table]
    chosen = operands[picks.chooser]
    chosen = torch.where(chosen < 0, chosen + table.size, chosen)
    return torch.isin(chosen, torch.tensor(table.indices(coord), dtype=chosen.dtype))


def _spoiled(operands: list[Tensor], rule: Rule, mine: Tensor) -> list[Tensor]:
    """The operands with NaN in the rows that the op must not read."""
    own = own_rows_read(rule)
    made = [x.detach().clone() for x in operands]
    for slot in own:
        made[slot][~mine] = torch.nan
    return made


def _run(node: fx.Node, split: Sharding, operands: list[Tensor], coord: Coord) -> list[Tensor]:
    """What one device makes of its part of the operands."""
    call, declared = Call(node), find(node.target)
    assert declared is not None, f"{node} is bound to a rule"
    own = call.replace() if declared.localize is None else declared.localize(call, split)
    shards = {
        operand: shard_of(operands[slot], split.operand(slot), coord)
        for slot, operand in enumerate(call.operands)
    }
    target, args, kwargs = pytree.tree_map_only(fx.Node, shards.__getitem__, specialise(own, coord))
    made = tree_leaves(target(*args, **kwargs))
    return [x for x in made if isinstance(x, Tensor)]
