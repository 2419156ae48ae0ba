"""Bytes that stay in memory, against what torch really holds."""

from __future__ import annotations

import pytest
import torch

from shardlang.cost.memory import kept_bytes, leaf_bytes, optimizer_states
from shardlang.ir.leaf import LeafKind
from shardlang.ir.program import with_gradient
from tests.plan.plans import FSDP, STACK, compiled

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {}),
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd, momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer(name: str) -> None:
    make, options = OPTIMIZERS[name]
    parameter = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = make([parameter], **options)
    parameter.sum().backward()
    optimizer.step()
    held = [x for x in optimizer.state[parameter].values() if x is not None and x.dim() == 2]
    kind = name.split(",")[0]
    assert optimizer_states(kind, momentum="momentum" in options) == len(held)


def test_leaves_at_rest() -> None:
    """Three blocks of two matrices of 24 x 8 and their biases, a quarter of each."""
    params = [p for p in compiled(FSDP).program.leaves if p.kind is LeafKind.PARAM]
    assert leaf_bytes(params) == 3 * (2 * 24 * 8 + 24 + 8) * 4 // 4


def test_what_a_backward_keeps() -> None:
    """Of every block: its input for `up`, `up`'s result for gelu, gelu's result for `down`.

    The input of the first block, 2 x 12 x 8 on a device, is a leaf. The loss squares the last sum.
    """
    program = compiled(STACK).program
    whole, split = 2 * 12 * 8 * 4, 2 * 12 * 24 // 4 * 4
    assert kept_bytes(program, with_gradient(program)) == 3 * 2 * split + 2 * whole + whole
