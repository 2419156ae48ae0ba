"""The driver of `init`: trace the model, choose layouts, write the spec, compile it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from shardlang.capture import Captured, capture
from shardlang.compiler.build import Statements, build_graph
from shardlang.grammar.diagnostics import Diagnostic
from shardlang.init.accepted import accepted
from shardlang.init.axes import Roles, parse_mesh, roles_of
from shardlang.init.chains import Dims
from shardlang.init.inputs import Sizes, inputs_of, parse_input
from shardlang.init.key_heads import with_key_heads
from shardlang.init.layouts import Layouts, lay_out
from shardlang.init.model import find_model
from shardlang.init.plans import Wishes, plan_of, wishes_of
from shardlang.init.residual import (
    DIMS,
    Residual,
    SplitValue,
    on_the_stream,
    split_stream,
    with_tables_by_columns,
)
from shardlang.init.write import Draft
from shardlang.ir.leaf import LeafKind
from shardlang.passes.propagate.bind_rules import BindRules


@dataclass(frozen=True, slots=True)
class Written:
    """A written spec.

    Attributes:
        percent: the part of the bytes of all matrices that is split over the model axis; None
            where the mesh has none.
        whole: matrices left whole.
        unused: entries of the model's plans that were not followed.
        findings: warnings of the spec.
    """

    text: str
    percent: float | None
    whole: tuple[str, ...]
    unused: tuple[str, ...]
    findings: tuple[Diagnostic, ...]


def write_spec(
    model: str,
    mesh: str,
    *,
    folder: Path,
    task: str | None = None,
    arguments: Iterable[str] = (),
    sizes: Sizes | None = None,
    store: str | None = None,
    inputs: Iterable[str] = (),
    residual: Residual = "whole",
    command: str = "shardlang init",
) -> Written:
    """Write a spec for a model.

    Args:
        folder: where the spec will lie; its paths are relative to it.
        arguments: what the model is built with, as `NAME=VALUE`.
        inputs: inputs as `NAME:dtype[shape]`, for those that the model does not say.
        residual: how the residual stream lies over the model axis.
        command: the command line, for the first comment.

    Raises:
        AxesError: the mesh cannot be read, or an axis has no role.
        StreamError: a residual stream is to be split, and none is found.
        CaptureError: the model cannot be found, built or traced, or its inputs are unknown.
        CompileError: no spec of this model and mesh compiles.
        ShardError: an op of the model has no rule.
    """
    roles = roles_of(parse_mesh(mesh), store)
    target = find_model(model, task, arguments)
    given = [parse_input(text) for text in inputs]
    module = target.source.deferred.module
    specs = inputs_of(target.source, target.task, roles, sizes or Sizes(), given)
    wishes = _wishes(module, roles)
    whole = residual == "whole"
    marked = set(wishes.sequences).__contains__ if whole else on_the_stream(module)
    captured = capture(target.source, specs, marked)
    params = [leaf for leaf in captured.leaves if leaf.kind is LeafKind.PARAM]
    buffers = [leaf for leaf in captured.leaves if leaf.kind is LeafKind.BUFFER]
    aliases = {alias: leaf.name for leaf in params for alias in leaf.aliases}
    wishes = wishes.renamed(aliases)
    drafts = [
        Draft(
            command, folder, target, choice.roles, specs, choice.layouts,
            shapes={leaf.name: leaf.shape for leaf in params},
            buffers={leaf.name: leaf.shape for leaf in buffers},
            aliases=aliases,
            values=choice.values,
            remarks=_remarks(wishes, choice.layouts),
        )
        for choice in _choices(captured, roles, wishes, residual)
    ]  # fmt: skip
    tried = [accepted(draft, captured) for draft in drafts]
    best = min(tried, key=lambda one: (one.sent_bytes, len(one.draft.layouts.whole)))
    layouts = best.draft.layouts
    percent = layouts.percent if roles.model is not None else None
    unused = _unused(wishes, layouts)
    return Written(best.text, percent, tuple(layouts.whole), unused, best.findings)


def _wishes(module: nn.Module, roles: Roles) -> Wishes:
    """What the model's own plans ask for, as far as the mesh has axes for it."""
    names = {name: p.dim() for name, p in module.named_parameters(remove_duplicate=False)}
    plans = [plan_of(module, "tp_plan")] if roles.model is not None else []
    plans += [plan_of(module, "ep_plan")] if roles.experts is not None else []
    return wishes_of(module, names, plans)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Axes, and what is split over them."""

    roles: Roles
    layouts: Layouts
    values: tuple[SplitValue, ...] = ()


def _choices(captured: Captured, roles: Roles, wishes: Wishes, residual: Residual) -> list[_Choice]:
    """What to try, the plainest first."""
    axis = roles.model or roles.experts
    if axis is None:
        return [_Choice(roles, Layouts())]
    graph = build_graph(captured, Statements(roles.mesh))
    BindRules().run(graph)
    dims = Dims(graph)
    layouts = lay_out(dims, roles.model, roles.experts, wishes)
    if roles.model is None:
        return [_Choice(roles, layouts)]
    values = tuple(SplitValue(module, (), DIMS["sequence"]) for module in wishes.sequences)
    if residual != "whole":
        values = tuple(split_stream(captured, dims, roles.model, residual))
    if residual == "hidden":
        layouts = with_tables_by_columns(dims, roles.model, layouts)
    heads = with_key_heads(dims, roles.model, layouts)
    return [_Choice(roles, one, values) for one in (layouts, heads) if one is not None]


def _unused(wishes: Wishes, layouts: Layouts) -> tuple[str, ...]:
    """Entries of the plans that the layouts do not follow."""
    other = [
        f"{entry} (split otherwise, or left whole)"
        for entry, dims in wishes.entries.items()
        if not any(dim in layouts.entries.get(name, {}) for name, dim in dims)
    ]
    return tuple(dict.fromkeys([*wishes.unused, *other]))


def _remarks(wishes: Wishes, layouts: Layouts) -> tuple[str, ...]:
    unused = _unused(wishes, layouts)
    return (f"Not taken from the model's own plan: {'; '.join(unused)}",) if unused else ()
