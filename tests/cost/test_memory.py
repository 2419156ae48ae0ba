"""What a device holds between steps, against what torch really holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shardlang.cost.memory import leaf_bytes, state_bytes
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.optimizers import UpdateRule
from tests.plan.plans import FSDP, compiled

OPTIMIZERS: dict[str, tuple[str, Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": ("adamw", torch.optim.AdamW, {}),
    "adamw, largest": ("adamw", torch.optim.AdamW, {"amsgrad": True}),
    "adam": ("adam", torch.optim.Adam, {}),
    "sgd": ("sgd", torch.optim.SGD, {"lr": 0.1}),
    "sgd, momentum": ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "asgd": ("asgd", torch.optim.ASGD, {}),
    "nadam": ("nadam", torch.optim.NAdam, {}),
    "rmsprop, all": ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_the_state_of_an_optimizer(case: str) -> None:
    name, make, options = OPTIMIZERS[case]
    shapes = {"a": (3, 5), "b": (7,)}
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes.values()]
    optimizer = make(parameters, **options)
    sum(one.sum() for one in parameters).backward()
    optimizer.step()
    kept = [x for one in parameters for x in optimizer.state[one].values() if x is not None]
    leaves = [
        Leaf(name, LeafKind.PARAM, name, torch.float32, Layout.whole(shape), True)
        for name, shape in shapes.items()
    ]
    assert state_bytes(leaves, {}, UpdateRule(name, options)) == sum(x.nbytes for x in kept)


def test_leaves_at_rest() -> None:
    """Three blocks of two matrices of 24 x 8 and their biases, a quarter of each."""
    program = compiled(FSDP).program
    params = [leaf for leaf in program.leaves if leaf.kind is LeafKind.PARAM]
    at = program.mesh.coord(0)
    assert leaf_bytes(params, at) == 3 * (2 * 24 * 8 + 24 + 8) * 4 // 4
