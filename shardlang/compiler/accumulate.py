"""The program of a step of several microbatches: the spec, with an axis along which they lie.

The axis splits the first dim of the inputs, more major than any other. What the spec states of
values and outputs is stated of each microbatch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial

from shardlang.compiler.at_model import at_model
from shardlang.compiler.driver import Compiled, CompileError, compile_spec
from shardlang.compiler.fit_microbatches import in_turn_within
from shardlang.compiler.never_cut import never_cut
from shardlang.compiler.pinned import layouts_of, pinned
from shardlang.grammar.diagnostics import Span, error
from shardlang.ir.accumulated import MICROBATCH, AccumulatedStep
from shardlang.ir.graph import ShardError
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.pipeline.split import Split
from shardlang.passes.step.write_step import write_accumulated
from shardlang.spec.types import Axes, InputDecl, LayoutExpr, Open, Spec, Whole


def accumulated(compiled: Compiled) -> Compiled:
    """The program along the microbatches of a step without a pipeline, within its budget of bytes.

    Raises:
        CompileError: SH0242, the batch has too few rows; or it cannot be compiled so.
    """
    return in_turn_within(along_microbatches(compiled))


def along_microbatches(compiled: Compiled, split: Split | None = None) -> Compiled:
    """The same spec along an axis of microbatches, its parameters where they lie, tied ones too.

    Args:
        split: the stages of the model.

    Raises:
        CompileError: SH0242, the batch has too few rows; or it cannot be compiled so.
    """
    spec, mesh = compiled.spec, compiled.program.mesh
    assert spec.accumulate is not None
    axis = Axis(MICROBATCH, spec.accumulate.count)
    rows = spec.inputs[0].shape[0] if spec.inputs and spec.inputs[0].shape else 1
    _check_rows(spec, rows, spec.accumulate.span)
    batch = _axes(spec.inputs[0]) if spec.inputs else ()
    along = replace(
        spec,
        mesh=Mesh((axis, *spec.mesh.axes)),
        data_axes=spec.data_axes | {MICROBATCH},
        inputs=tuple(_input(decl, rows) for decl in spec.inputs),
        values=tuple(replace(x, layout=_stated(x.layout, batch)) for x in spec.values),
        outputs=tuple(replace(x, layout=_stated(x.layout, batch)) for x in spec.outputs),
    )
    again = partial(
        compile_spec,
        source=compiled.source,
        inputs=compiled.inputs,
        mesh=Mesh((axis, *mesh.axes)),
        split=split,
        captured=compiled.captured,
    )
    made = again(along)
    if whole := never_cut(made.program, spec.inputs, axis):
        given = tuple(x if x in whole else _input(x, rows) for x in spec.inputs)
        made = again(replace(along, inputs=given))
    before, after = (layouts_of(x, "param", "buffer") for x in (compiled, made))
    kept = {name: layout for name, layout in before.items() if name in after}
    wanted = {x.name: kept.get(x.tied or x.name) for x in made.program.leaves}
    stays = all(wanted[name] in (None, layout) for name, layout in after.items())
    return made if stays else pinned(made, kept)


def accumulated_step(
    along: Compiled, trained: Collection[str] | None = None, last: str | None = None
) -> AccumulatedStep:
    """The step of a program along its microbatches.

    Args:
        trained: the parameters whose gradients it gives; what the model trains if not given.
        last: the pass after which it ends; the last of all if not given.

    Raises:
        CompileError: SH0409, an op needs all microbatches at once.
    """
    if trained is None:
        trained = [leaf.name for leaf in along.program.leaves if leaf.trainable]
    try:
        return write_accumulated(along.program, trained, last)
    except ShardError as failure:
        raise CompileError([at_model(failure, along.spec)]) from failure


def least_rows(spec: Spec) -> int:
    """How many rows a batch needs, so that every device has one in every microbatch."""
    assert spec.accumulate is not None
    return spec.accumulate.count * _shards(spec)


def _shards(spec: Spec) -> int:
    axes = spec.mesh.named(_axes(spec.inputs[0])) if spec.inputs else ()
    return math.prod(axis.size for axis in axes)


def _check_rows(spec: Spec, rows: int, at: Span) -> None:
    assert spec.accumulate is not None
    if rows < least_rows(spec):
        shards = _shards(spec)
        message = f"{rows} rows are too few for {spec.accumulate.count} microbatches"
        message += f" on {shards} devices each" if shards > 1 else ""
        help = "give the inputs more rows, or state fewer microbatches"
        raise CompileError([error("SH0242", message, at, help=help)])


def _axes(decl: InputDecl) -> tuple[str, ...]:
    """The axes that split the first dim."""
    first = next(iter(decl.layout.with_first_dim(len(decl.shape)).entries), None)
    return first.axes if isinstance(first, Axes) else ()


def _input(decl: InputDecl, rows: int) -> InputDecl:
    """An input with the rows of the batch is split; any other is the same for all microbatches."""
    if not decl.shape or decl.shape[0] != rows:
        return decl
    first, *rest = decl.layout.with_first_dim(len(decl.shape)).entries
    axes = first.axes if isinstance(first, Axes) else ()
    blocks = first.blocks if isinstance(first, Axes) else None
    entry = Axes((MICROBATCH, *axes), blocks, first.span)
    return replace(decl, layout=replace(decl.layout, entries=(entry, *rest)))


def _stated(layout: LayoutExpr, batch: tuple[str, ...]) -> LayoutExpr:
    """A layout of a value: a dim that is split as the batch is lies along microbatches too."""
    entries = list(layout.entries)
    for i, entry in enumerate(entries):
        if isinstance(entry, Axes) and batch and entry.axes[: len(batch)] == batch:
            entries[i] = replace(entry, axes=(MICROBATCH, *entry.axes))
            return replace(layout, entries=tuple(entries))
    if not batch and entries and isinstance(entries[0], Whole):
        entries[0] = Open(entries[0].span)
    return replace(layout, entries=tuple(entries))
