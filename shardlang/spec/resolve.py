"""Text to `Spec`: gather the files, enter the names, resolve each statement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shardlang.grammar.diagnostics import (
    Diagnostic,
    error,
    has_errors,
    in_order,
    start_of_file,
)
from shardlang.ir.mesh import Mesh
from shardlang.spec.draft import Draft
from shardlang.spec.gather import Gathered, gather_file, gather_text
from shardlang.spec.learning_rates import resolve_learning_rate
from shardlang.spec.names import Roles, declare_dims, declare_lets, declare_mesh
from shardlang.spec.optimizers import resolve_groups
from shardlang.spec.pipeline import check_accumulate, declare_stages
from shardlang.spec.precision import check_reduce
from shardlang.spec.scope import Scope
from shardlang.spec.statements import resolve_statement
from shardlang.spec.types import Axes, InputDecl, ModelRef, Scalar, Spec


def load_spec(
    path: str | Path, sets: Mapping[str, str] | None = None, *, need_model: bool = True
) -> tuple[Spec | None, list[Diagnostic]]:
    """Read and resolve a `.shard` file and all that it uses.

    Args:
        path: the file; findings name it as given.
        sets: the text of each `--set NAME=VALUE`.
        need_model: whether a spec that does not name a model is an error.

    Returns:
        The spec, or None where there are errors, and all findings in order of place.
    """
    return _resolve(gather_file(Path(path)), Path(path), sets or {}, need_model)


def load_spec_text(
    text: str, file: str = "<text>", sets: Mapping[str, str] | None = None
) -> tuple[Spec | None, list[Diagnostic]]:
    """The same for a text; its paths are relative to the folder of `file`."""
    return _resolve(gather_text(text, file), Path(file), sets or {})


def _resolve(
    gathered: Gathered, path: Path, sets: Mapping[str, str], need_model: bool = True
) -> tuple[Spec | None, list[Diagnostic]]:
    if has_errors(gathered.findings):
        return None, in_order(gathered.findings)
    scope = Scope()
    values = declare_lets(gathered, sets, scope)
    mesh, roles = declare_mesh(gathered, scope)
    declare_stages(gathered, roles, scope)
    declare_dims(gathered, scope)
    draft = Draft(scope)
    for fact in gathered.facts:
        draft.folder = fact.folder
        resolve_statement(fact.statement, draft)
    check_reduce(draft)
    check_accumulate(draft)
    groups, schedule = resolve_groups(draft), resolve_learning_rate(draft)
    if need_model:
        _check_model(draft, gathered)
    if not has_errors(scope.findings):
        _warn_unused(scope, gathered.root)
    findings = in_order(scope.findings)
    if has_errors(findings) or mesh is None:
        return None, findings
    made = _spec(draft, path, values, mesh.in_parts(scope.parts.cuts), roles)
    return replace(made, groups=groups, learning_rate=schedule), findings


def _check_model(draft: Draft, gathered: Gathered) -> None:
    if draft.model is None and not any(kind == "model" for kind, _ in draft.stated):
        help = 'write `model "file.py:function"()` or `model hf("config.json", task = ...)`'
        span = start_of_file(gathered.root)
        draft.scope.report(error("SH0214", "the spec does not name a model", span, help=help))


def _warn_unused(scope: Scope, root: str) -> None:
    """Warn of names that the first file declares and nothing uses."""
    for name, (kind, span) in scope.places.items():
        if name in scope.used or span.file != root:
            continue
        if kind == "axis":
            message = f"axis `{name}` shards nothing"
            help = "lay a tensor out over it, or every device along it does the same work"
            scope.report(Diagnostic("SH0231", "warning", message, span, help=help))
        else:
            message = f"`{name}` is never used"
            scope.report(Diagnostic("SH0230", "warning", message, span, help="remove it"))


def _spec(
    draft: Draft,
    path: Path,
    values: tuple[tuple[str, Scalar], ...],
    mesh: Mesh,
    roles: Roles,
) -> Spec:
    model = draft.model or ModelRef("python", path, span=start_of_file(str(path)))
    inputs = tuple(draft.inputs.values())
    return Spec(
        path=path,
        sets=values,
        mesh=mesh,
        data_axes=_data_axes(roles, inputs),
        model=model,
        inputs=inputs,
        params=tuple(draft.params),
        buffers=tuple(draft.buffers),
        values=tuple(draft.values),
        outputs=tuple(draft.outputs),
        loss=draft.loss,
        data=draft.data,
        stores=tuple(draft.stores),
        optimizer=draft.optimizer,
        evaluate=draft.evaluate,
        random=draft.random,
        accumulate=draft.microbatches or draft.accumulate,
        pipeline=draft.pipeline,
        checkpoint=draft.checkpoint,
        precision=draft.precision,
        step=draft.step,
        peaks=tuple(draft.peaks.values()),
        budget_span=draft.stated.get(("recompute", "")),
        recomputes=tuple(draft.recomputes),
        expects=tuple(draft.expects),
    )


def _data_axes(roles: Roles, inputs: tuple[InputDecl, ...]) -> frozenset[str]:
    """The axes declared `as data`, and those of a batch that are not declared `as model`."""
    data = {name for name, role in roles.items() if role == "data"}
    model = {name for name, role in roles.items() if role == "model"}
    found = data | _batch_axes(inputs)
    return frozenset(name for name in found if re.split("[/:]", name)[0] not in model)


def _batch_axes(inputs: tuple[InputDecl, ...]) -> frozenset[str]:
    """The axes that shard the first dim of an input."""
    return frozenset(
        axis
        for decl in inputs
        for entry in decl.layout.with_first_dim(len(decl.shape)).entries[:1]
        if isinstance(entry, Axes)
        for axis in entry.axes
    )
