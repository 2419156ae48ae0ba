"""Batches of another size than declared, such as the last one of an epoch.

A program is made for one size. For another one the same spec is compiled again, and that program
runs on the parameters of the first: at rest these lie the same at every size. A dim of an input
with fewer indices than shards is whole on every device instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from shardlang.build import build_graph
from shardlang.driver import Compiled, CompileError, compile_spec, input_names
from shardlang.ir.graph import ShardError, Stated
from shardlang.ir.mesh import Mesh
from shardlang.ir.pieces import piece_of
from shardlang.ir.program import LeafPlacement
from shardlang.passes.localize import to_program
from shardlang.passes.pipeline import run_passes
from shardlang.patterns import literal_pattern
from shardlang.runtime.calls import LoadedProgram
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule, held
from shardlang.spec.types import Axes, InputDecl, LayoutExpr, Rest, Whole

Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"


@dataclass(slots=True)
class Sizes:
    """The programs of one model for batches of all sizes that have come so far."""

    compiled: Compiled
    module: ShardedModule
    _others: dict[Shapes, LoadedProgram] = field(default_factory=dict)

    def module_for(self, batch: Batch) -> LoadedProgram:
        """The program for a whole batch. Collective: every rank has the same batches.

        Raises:
            RunError: SH0605, the batch lacks an input, or its size cannot be compiled.
        """
        declared = self.compiled.inputs
        lacking = [spec.name for spec in declared if spec.name not in batch]
        if lacking:
            raise RunError("SH0605", f"the batch lacks the input `{lacking[0]}`")
        shapes = tuple(tuple(batch[spec.name].shape) for spec in declared)
        if shapes == tuple(spec.shape for spec in declared):
            return held(self.module).loaded
        if shapes not in self._others:
            self._others[shapes] = self._resized(shapes)
        return self._others[shapes]

    def _resized(self, shapes: Shapes) -> LoadedProgram:
        try:
            with torch.random.fork_rng(devices=[]):
                other = compiled_for(self.compiled, shapes)
        except (CompileError, ShardError) as failure:
            raise RunError(
                "SH0605", f"the model cannot be compiled for inputs of {list(shapes)}: {failure}",
                help="leave out batches of this size",
            ) from failure  # fmt: skip
        coord = held(self.module).groups.coord
        layouts = {leaf.name: leaf.layout for leaf in other.program.leaves}
        constants = {
            name: piece_of(value, layouts[name], coord)
            for name, value in other.captured.constants.items()
            if name in layouts
        }
        return held(self.module).resized(other.program, other.captured, constants)


def compiled_for(compiled: Compiled, shapes: Shapes) -> Compiled:
    """The spec compiled for inputs of other shapes, with every parameter where it was.

    Raises:
        CompileError: it cannot be compiled for these.
        ShardError: nor with its parameters where they were.
    """
    names = [spec.name for spec in compiled.inputs]
    declared = _declared(compiled, dict(zip(names, shapes, strict=True)))
    other = compile_spec(replace(compiled.spec, inputs=declared), compiled.source)
    before, after = _at_rest(compiled), _at_rest(other)
    if all(after[name].layout == leaf.layout for name, leaf in before.items()):
        return other
    return _pinned(other, before)


def _declared(compiled: Compiled, shapes: Mapping[str, tuple[int, ...]]) -> tuple[InputDecl, ...]:
    """The declarations of the inputs, one by one, with other shapes."""
    return tuple(
        replace(
            decl,
            pattern=literal_pattern(name),
            shape=shapes[name],
            layout=_fitting(decl.layout, shapes[name], compiled.spec.mesh),
        )
        for decl in compiled.spec.inputs
        for name in input_names(decl, compiled.source)
    )


def _fitting(layout: LayoutExpr, shape: tuple[int, ...], mesh: Mesh) -> LayoutExpr:
    """The layout without the axes that a dim is too small for."""
    entries = list(layout.entries)
    for dim, entry in enumerate(entries[: len(shape)]):
        if isinstance(entry, Rest):
            break
        if isinstance(entry, Axes) and math.prod(mesh[a].size for a in entry.axes) > shape[dim]:
            entries[dim] = Whole(entry.span)
    return replace(layout, entries=tuple(entries))


def _at_rest(compiled: Compiled) -> dict[str, LeafPlacement]:
    leaves = compiled.program.leaves
    return {leaf.name: leaf for leaf in leaves if leaf.kind in ("param", "buffer")}


def _pinned(compiled: Compiled, before: Mapping[str, LeafPlacement]) -> Compiled:
    """The same, with the layouts of parameters and buffers stated as they were."""
    stores = compiled.placements.stores
    stated = {
        name: Stated(leaf.layout.without(stores[name].axes if name in stores else ()))
        for name, leaf in before.items()
    }
    placements = replace(compiled.placements, leaves={**compiled.placements.leaves, **stated})
    graph = run_passes(build_graph(compiled.captured, placements))
    return replace(compiled, placements=placements, graph=graph, program=to_program(graph))
