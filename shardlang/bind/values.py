"""`value` statements: which tensor of which module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardlang.bind.statements import Findings, Kind
from shardlang.bind.types import ModelNames, Shape
from shardlang.grammar.diagnostics import Diagnostic, error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.ir.leaf import ValueKey
from shardlang.ir.records import Stated
from shardlang.spec.types import ValueDecl

MODULE = Kind("module", "modules")


def bind_values(
    decls: Sequence[ValueDecl], names: ModelNames, findings: Findings
) -> dict[ValueKey, Stated]:
    """The stated layouts of module inputs and outputs; of two statements the later wins."""
    choices = _choices(names.values)
    owner: dict[ValueKey, ValueDecl] = {}
    for decl in decls:
        modules = decl.pattern.select(names.modules)
        if not modules:
            known = [name for name in names.modules if name]
            findings.unmatched(decl.pattern, decl.span, MODULE, known)
        for key in _select(decl, modules, choices, findings):
            earlier = owner.pop(key, None)
            if earlier is not None and earlier.pattern != decl.pattern:
                findings.overridden(earlier, [decl], 1)
            owner[key] = decl
    return _place(owner, names, findings)


def _choices(values: Mapping[ValueKey, Shape]) -> dict[tuple[str, str], list[str]]:
    """The selectors of each module and side."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, side, selector in values:
        found.setdefault((module, side), []).append(selector)
    return found


def _select(
    decl: ValueDecl,
    modules: Sequence[str],
    choices: Mapping[tuple[str, str], list[str]],
    findings: Findings,
) -> list[ValueKey]:
    """The tensor of each module; modules that fail alike give one finding."""
    wanted = ".".join(decl.path)
    keys: list[ValueKey] = []
    failed: dict[tuple[str, ...], list[str]] = {}
    for module in modules:
        offered = choices.get((module, decl.side), [])
        if wanted in offered:
            keys.append((module, decl.side, wanted))
        elif not wanted and len(offered) == 1:
            keys.append((module, decl.side, offered[0]))
        else:
            failed.setdefault(tuple(offered), []).append(module)
    findings.found += [_no_tensor(decl, named, offered) for offered, named in failed.items()]
    return keys


def _no_tensor(decl: ValueDecl, modules: Sequence[str], offered: Sequence[str]) -> Diagnostic:
    verb = "returns" if decl.side == "out" else "reads"
    listed = join_words(quote(f".{decl.side}.{selector}" for selector in offered), "and")
    notes = [f"so do {len(modules) - 1} more modules"] if len(modules) > 1 else []
    if offered and not decl.path:
        message = f"`{modules[0]}` {verb} several tensors"
        help = f"choose one: {listed}"
        return error("SH0305", message, decl.span, notes=notes, help=help)
    if not offered:
        message = f"`{modules[0]}` {verb} no tensor"
        help = "narrow the pattern to modules that the model calls"
        return error("SH0306", message, decl.span, notes=notes, help=help)
    wanted = ".".join(decl.path)
    near = nearest(wanted, offered)
    help = f"did you mean `.{decl.side}.{near[0]}`" if near else f"the choices are {listed}"
    if offered == ("",):
        help = f"it {verb} one tensor: write `.{decl.side}`"
    message = f"`{modules[0]}` {verb} no tensor `{wanted}`"
    return error("SH0306", message, decl.span, notes=notes, help=help)


def _place(
    owner: Mapping[ValueKey, ValueDecl], names: ModelNames, findings: Findings
) -> dict[ValueKey, Stated]:
    """Apply each statement to its tensors."""
    by_decl: dict[int, tuple[ValueDecl, dict[str, ValueKey]]] = {}
    for key, decl in owner.items():
        module, side, selector = key
        shown = ".".join(part for part in (module, side, selector) if part)
        by_decl.setdefault(id(decl), (decl, {}))[1][shown] = key
    bound: dict[ValueKey, Stated] = {}
    for decl, keys in by_decl.values():
        shapes = {shown: names.values[key] for shown, key in keys.items()}
        for shown, result in findings.bind(decl, shapes).items():
            bound[keys[shown]] = result
    return bound
