"""Proving a family as a pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import shardlang
from shardlang.compiler.driver import Compiled
from shardlang.ir.accumulated import AccumulatedStep, MeshAt
from shardlang.ir.shards import shard_of
from shardlang.runtime.simulate import PerDevice
from tests.pipeline.families import Family


def compiled_family(
    folder: Path, family: Family, mesh: str, schedule: str, more: str = "", layers: int = 8
) -> Compiled:
    """A family on a mesh whose axis `pp` has the stages."""
    path = family.write(folder, mesh, schedule, more, layers)
    model = None if isinstance(family.model, str) else family.model
    return shardlang.compile(path, model=model).compiled


def leaves_of(step: AccumulatedStep, meshes: list[MeshAt]) -> list[dict[str, PerDevice]]:
    """The leaves of every microbatch on every device, drawn; a tied one like its first."""
    made: list[dict[str, PerDevice]] = [{} for _ in meshes]
    full: dict[str, Tensor] = {}
    for leaf in (one for one in step.main.leaves if one.name not in step.early.gives):
        name = leaf.tied or leaf.name
        if name not in full:
            whole = leaf.dtype.is_floating_point
            full[name] = (
                torch.randn(leaf.shape, dtype=leaf.dtype) if whole else torch.randint(9, leaf.shape)
            )
        for mesh, here in zip(meshes, made, strict=True):
            at_rest = [shard_of(full[name], leaf.at_rest, at).clone() for at in mesh.coords()]
            here[leaf.name] = at_rest
    return made
