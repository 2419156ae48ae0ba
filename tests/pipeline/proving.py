"""Proving a family as a pipeline: every schedule on a mesh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import shardlang
from shardlang.compiler.accumulate import accumulated
from shardlang.compiler.at_model import at_model
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.pipelined import schedule_of
from shardlang.grammar.patterns import literal_pattern
from shardlang.ir.accumulated import AccumulatedStep, MeshAt
from shardlang.ir.graph import ShardError
from shardlang.ir.shards import shard_of
from shardlang.proof.accumulated import Along
from shardlang.proof.report import Report
from shardlang.proof.verify import verify
from shardlang.runtime.simulate import PerDevice
from shardlang.spec.types import AccumulateDecl, PipelineDecl
from tests.pipeline.families import Family

MICROBATCHES = 4
VIRTUAL = {"interleaved_1f1b": 2}


def compiled_family(
    folder: Path, family: Family, mesh: str, schedule: str, more: str = ""
) -> Compiled:
    """A family on a mesh whose axis `pp` has the stages."""
    path = family.write(folder, mesh, more)
    model = None if isinstance(family.model, str) else family.model
    compiled = shardlang.compile(path, model=model).compiled
    stated = PipelineDecl("pp", literal_pattern("-"), schedule, VIRTUAL.get(schedule, 1))
    spec = replace(compiled.spec, accumulate=AccumulateDecl(MICROBATCHES), pipeline=stated)
    return replace(compiled, spec=spec)


def along_of(compiled: Compiled, family: Family) -> Compiled:
    """Its program along the microbatches, every op of which has a stage."""
    return accumulated(compiled, family.split(schedule_of(compiled.spec).stages))


def prove(compiled: Compiled, family: Family) -> Report:
    """The report of its pipeline.

    Raises:
        CompileError: it cannot be split so.
    """
    made, stated = along_of(compiled, family), compiled.spec.pipeline
    assert stated is not None
    along = Along(made.captured, made.statements, schedule_of(compiled.spec), stated.schedule)
    try:
        return verify(
            compiled.captured, compiled.statements, compiled.source, compiled.inputs, along=along
        )
    except ShardError as failure:
        raise CompileError([at_model(failure, compiled.spec)]) from failure


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
