"""bind: a spec against the names of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardlang.bind.statements import Findings, Kind, in_force
from shardlang.bind.types import Binding, ModelNames, Shape
from shardlang.bind.values import MODULE, bind_values
from shardlang.grammar.diagnostics import Diagnostic, Span, error, has_errors, in_order
from shardlang.grammar.patterns import Pattern
from shardlang.ir.mesh import Axis
from shardlang.ir.optimizers import GroupRule
from shardlang.ir.records import Stated
from shardlang.spec.types import ExpectCount, ExpectForbid, InputDecl, LayoutDecl, Spec, StoreDecl

_PARAM = Kind("parameter", "parameters")
_BUFFER = Kind("buffer", "buffers")
_INPUT = Kind("input", "inputs", "SH0307")
_OUTPUT = Kind("output", "outputs", "SH0310")


def bind(spec: Spec, names: ModelNames) -> tuple[Binding | None, list[Diagnostic]]:
    """Look up every name of a spec in a model, and lay out what it names.

    Returns:
        The binding, or None where there are errors, and all findings in order of place.
    """
    findings = Findings(spec.mesh)
    stores = _bind_stores(spec, names, findings)
    binding = Binding(
        params=_bind_tensors(spec.params, names.params, names.aliases, _PARAM, findings),
        buffers=_bind_tensors(spec.buffers, names.buffers, names.aliases, _BUFFER, findings),
        inputs=_bind_inputs(spec.inputs, names.inputs, findings),
        outputs=_bind_outputs(spec.outputs, names.outputs, findings),
        values=bind_values(spec.values, names, findings),
        storage=_axes(stores, spec),
        stores=stores,
        loss=_bind_loss(spec, names, findings),
        recompute=_bind_recompute(spec, names, findings),
        groups=_bind_groups(spec, names, findings),
    )
    _check_expects(spec, names, findings)
    found = in_order(findings.found)
    return (None if has_errors(found) else binding), found


def _bind_tensors(
    stated: Sequence[LayoutDecl],
    shapes: Mapping[str, Shape],
    aliases: Mapping[str, str],
    kind: Kind,
    findings: Findings,
) -> dict[str, Stated]:
    known = {alias: name for alias, name in aliases.items() if name in shapes}
    owner = in_force(stated, shapes, known, kind, findings)
    return _bind_all(owner, shapes, findings)


def _bind_all(
    owner: Mapping[str, LayoutDecl], shapes: Mapping[str, Shape], findings: Findings
) -> dict[str, Stated]:
    """Apply each statement to the tensors that it is in force for."""
    by_statement: dict[int, tuple[LayoutDecl, dict[str, Shape]]] = {}
    for name, statement in owner.items():
        by_statement.setdefault(id(statement), (statement, {}))[1][name] = shapes[name]
    bound: dict[str, Stated] = {}
    for statement, mine in by_statement.values():
        bound.update(findings.bind(statement, mine))
    return {name: bound[name] for name in owner if name in bound}


def _bind_outputs(
    stated: Sequence[LayoutDecl], shapes: Mapping[str, Shape], findings: Findings
) -> dict[str, Stated]:
    owner = in_force(stated, shapes, {}, _OUTPUT, findings)
    return _bind_all(owner, shapes, findings)


def _bind_inputs(
    decls: Sequence[InputDecl], shapes: Mapping[str, Shape], findings: Findings
) -> dict[str, Stated]:
    bound: dict[str, Stated] = {}
    for name, decl in in_force(decls, shapes, {}, _INPUT, findings).items():
        if shapes[name] != decl.shape:
            findings.found.append(_other_shape(name, decl, shapes[name]))
        else:
            bound.update(findings.bind(decl, {name: decl.shape}))
    return bound


def _other_shape(name: str, decl: InputDecl, shape: Shape) -> Diagnostic:
    stated, traced = (list(sizes) for sizes in (decl.shape, shape))
    return error(
        "SH0308",
        f"input `{name}` is stated as {stated}, the model reads {traced}",
        decl.span,
        help="state the shape that the model reads",
    )


def _bind_stores(spec: Spec, names: ModelNames, findings: Findings) -> dict[str, StoreDecl]:
    """The storage statement in force for each parameter; scalars stay whole."""
    owner = in_force(spec.stores, names.params, _of_params(names), _PARAM, findings)
    return {name: decl for name, decl in owner.items() if names.params[name]}


def _of_params(names: ModelNames) -> dict[str, str]:
    """The other names of tied parameters; those of shared buffers are left out."""
    return {alias: own for alias, own in names.aliases.items() if own in names.params}


def _axes(stores: Mapping[str, StoreDecl], spec: Spec) -> dict[str, tuple[Axis, ...]]:
    return {name: spec.mesh.named(decl.axes) for name, decl in stores.items()}


def _bind_loss(spec: Spec, names: ModelNames, findings: Findings) -> str | None:
    if spec.loss is None:
        return None
    matched = spec.loss.pattern.select(names.outputs)
    if not matched:
        findings.unmatched(spec.loss.pattern, spec.loss.span, _OUTPUT, list(names.outputs))
        return None
    if len(matched) > 1 or names.outputs[matched[0]] not in ((), (1,)):
        what = "is not a scalar" if len(matched) == 1 else f"matches {len(matched)} outputs"
        message = f"the loss `{spec.loss.pattern}` {what}"
        help = "name one output that holds a single number"
        findings.found.append(error("SH0311", message, spec.loss.span, help=help))
        return None
    return matched[0]


def _bind_recompute(spec: Spec, names: ModelNames, findings: Findings) -> tuple[str, ...]:
    """The modules that are computed again, without those inside others."""
    found: dict[str, None] = {}
    for decl in spec.recomputes:
        matched = decl.pattern.select(names.modules)
        if not matched:
            known = [name for name in names.modules if name]
            findings.unmatched(decl.pattern, decl.span, MODULE, known)
        found.update(dict.fromkeys(matched))
    return tuple(name for name in found if not any(_inside(name, other) for other in found))


def _bind_groups(spec: Spec, names: ModelNames, findings: Findings) -> tuple[GroupRule, ...]:
    """The parameters of each group, under all of their names; the last that matches wins."""
    aliases = _of_params(names)
    target = {**{name: name for name in names.params}, **aliases}
    parts = [_Part(*each, i) for i, decl in enumerate(spec.groups) for each in decl.patterns]
    owner = in_force(parts, names.params, aliases, _PARAM, findings)
    group = {name: part.number for name, part in owner.items()}
    members = [
        frozenset(n for n, own in target.items() if group.get(own) == i)
        for i in range(len(spec.groups))
    ]
    return tuple(
        GroupRule(mine, dict(decl.arguments))
        for mine, decl in zip(members, spec.groups, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the patterns of a group, and the number of the group."""

    pattern: Pattern
    span: Span
    number: int


def _inside(name: str, other: str) -> bool:
    """Whether a module is a part of another one."""
    return name != other and (not other or name.startswith(f"{other}."))


def _check_expects(spec: Spec, names: ModelNames, findings: Findings) -> None:
    """Report expectations about modules that the model does not have."""
    modules = [name for name in names.modules if name]
    for expect in spec.expects:
        if not isinstance(expect, ExpectCount | ExpectForbid) or expect.select.pattern is None:
            continue
        if not expect.select.pattern.select(names.modules):
            findings.unmatched(expect.select.pattern, expect.span, MODULE, modules)
