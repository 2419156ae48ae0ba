"""Training runs on every rank beside the plain model."""

from __future__ import annotations

import os

import torch

from shardlang.compiler.driver import compile_spec
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups, join
from shardlang.training.recipe import recipe_of
from shardlang.training.run import Run, sharded_module
from tests.moves.models import SPECS, spec_of

STEPS = 3
Losses = list[float | None]


def losses() -> dict[str, tuple[Losses, Losses]]:
    """Of every spec, the losses on these processes, and those of the plain model."""
    found: dict[str, tuple[Losses, Losses]] = {}
    rank = int(os.environ["RANK"])
    for name, text in SPECS.items():
        compiled = compile_spec(spec_of(text))
        mesh = compiled.spec.mesh
        groups = Groups(mesh, rank) if found else join(mesh, timeout_s=60)
        run = Run(compiled, recipe_of(compiled, STEPS, 2))
        mine = run.sharded(sharded_module(compiled, groups, 2), list)
        found[name] = [r.loss for r in mine], [r.loss for r in run.reference(list)]
    found["changed too soon"] = [], [float(_changed_too_soon(rank))]
    return found


def _changed_too_soon(rank: int) -> bool:
    """Whether a change of a parameter between a forward and its backward is refused."""
    compiled = compile_spec(spec_of(SPECS["regather, complex"]))
    module = sharded_module(compiled, Groups(compiled.spec.mesh, rank), 2)
    whole = {"x": torch.ones(6, 6).double(), "target": torch.ones(6, 4).double()}
    loss = module(**module.shard_inputs(**whole))["loss"]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    try:
        loss.backward()
    except RunError as error:
        return error.code == "SH0641" and "`w`" in error.message
    return False
