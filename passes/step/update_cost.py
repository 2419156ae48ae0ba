"""What the update of a program's parameters costs on each device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from shardlang.cost.update import UpdateCost
from shardlang.ir.accumulated import mesh_of
from shardlang.ir.leaf import Leaf
from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.precision import Precision
from shardlang.ir.program import LocalProgram
from shardlang.passes.step.write_update import write_update


def update_cost(
    program: LocalProgram, leaves: Sequence[Leaf], rule: UpdateRule, precision: Precision
) -> UpdateCost:
    """The update of some parameters by an optimizer, with the gathers that follow it.

    The norm of the gradients is taken where it is read: by clipping, by a factor of the loss, and
    by steps that start at a loss.
    """
    stated = rule.clip is not None or precision.loss_scale is not None
    return UpdateCost(
        mesh_of(program),
        leaves,
        rule,
        precision,
        partial(write_update, program),
        takes_norm=stated or program.loss is not None,
    )
