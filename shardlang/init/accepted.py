"""A draft is compiled before it is written, and what the compiler refuses of it is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shardlang.bind import bind
from shardlang.capture import Captured
from shardlang.compiler.driver import CompileError, names_of, statements_of
from shardlang.compiler.loss import unnamed_loss
from shardlang.compiler.parts import decided
from shardlang.cost.step import step_bytes
from shardlang.grammar.diagnostics import Diagnostic, Span, has_errors, start_of_file
from shardlang.init.layouts import Layouts
from shardlang.init.names import generic, patterns_for
from shardlang.init.write import Draft, spec_text
from shardlang.ir.graph import ShardError
from shardlang.passes.rewrite.localize import to_program
from shardlang.spec import load_spec_text

_TEXT = "written.shard"
"""What the text is called while it is compiled; no message shows it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A draft as text, compiled: its warnings, and the bytes that a device sends in one step."""

    draft: Draft
    text: str
    findings: tuple[Diagnostic, ...]
    sent_bytes: int


def accepted(draft: Draft, captured: Captured) -> Trial:
    """The draft if it compiles, else as much of it as does.

    Raises:
        CompileError: it does not compile though it splits no parameter.
        ShardError: the same, found by a pass.
    """
    try:
        return _tried(draft, captured)
    except (CompileError, ShardError) as failure:
        reason = _reason(failure)
    base = _unsplit(draft, captured)
    draft = replace(draft, values=base.draft.values)
    kept = _Search(draft, captured).most(base, _units(draft.layouts))
    lost = [name for name in draft.layouts.entries if name not in kept.draft.layouts.entries]
    remark = _left_out(lost or ["the residual stream"], draft, reason)
    return _tried(replace(kept.draft, remarks=(*draft.remarks, remark)), captured)


def _unsplit(draft: Draft, captured: Captured) -> Trial:
    """The draft with every parameter whole, and with the values that it states if it can be."""
    empty = replace(draft, layouts=replace(draft.layouts, entries={}, titles={}))
    try:
        return _tried(empty, captured)
    except (CompileError, ShardError):
        return _tried(replace(empty, values=()), captured)


def _left_out(lost: list[str], draft: Draft, reason: str) -> str:
    """The remark about what was to be split and is not."""
    shown = patterns_for(lost, [name for name in draft.shapes if name not in lost])
    return f"Not split, since that is refused ({reason}): {', '.join(shown)}"


def _reason(failure: CompileError | ShardError) -> str:
    if isinstance(failure, ShardError):
        return failure.message
    return next(one.message for one in failure.diagnostics if one.is_error)


def _units(layouts: Layouts) -> list[list[str]]:
    """Names that are split alike in all layers: these are kept or left out together."""
    units: dict[object, list[str]] = {}
    for name, entries in layouts.entries.items():
        units.setdefault((generic(name), tuple(entries.items())), []).append(name)
    return list(units.values())


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for what can be kept of a draft, by halves."""

    draft: Draft
    captured: Captured

    def most(self, kept: Trial, units: Sequence[list[str]]) -> Trial:
        """What is kept, with as many more units as the compiler accepts in this order."""
        if not units:
            return kept
        try:
            return _tried(self.with_units(kept.draft.layouts, units), self.captured)
        except (CompileError, ShardError):
            if len(units) == 1:
                return kept
        half = len(units) // 2
        return self.most(self.most(kept, units[:half]), units[half:])

    def with_units(self, kept: Layouts, units: Iterable[list[str]]) -> Draft:
        """The draft with what is kept and some more."""
        names = {*kept.entries, *(name for unit in units for name in unit)}
        full = self.draft.layouts
        entries = {name: split for name, split in full.entries.items() if name in names}
        return replace(self.draft, layouts=replace(full, entries=entries))


def _tried(draft: Draft, captured: Captured) -> Trial:
    """Write and compile a draft.

    Raises:
        CompileError: its statements are refused.
        ShardError: a pass refuses it.
    """
    text = spec_text(draft)
    spec, findings = load_spec_text(text, str(draft.folder / _TEXT))
    if spec is None:
        raise CompileError(_at_model(findings, draft, text))
    binding, found = bind(spec, names_of(captured))
    if binding is None or has_errors(found):
        raise CompileError(_at_model(found, draft, text))
    train = draft.target.source.mode == "train"
    statements = statements_of(spec, binding, captured)
    graph = decided(captured, statements, train).graph
    unnamed = unnamed_loss(spec, statements.loss, captured) if train else None
    warnings = [one for one in (*findings, *found) if one.severity == "warning"]
    warnings += [] if unnamed is None else [unnamed]
    shown = tuple(_at_model(warnings, draft, text))
    return Trial(draft, text, shown, step_bytes(to_program(graph), train))


def _at_model(findings: Iterable[Diagnostic], draft: Draft, text: str) -> list[Diagnostic]:
    """Findings about a text that is in no file yet, at the model that it is written for."""
    place = start_of_file(str(draft.target.path))
    lines = text.split("\n")
    return [
        replace(one, span=place, labels=(), notes=(*one.notes, _statement(one.span, lines)))
        for one in findings
    ]


def _statement(span: Span, lines: Sequence[str]) -> str:
    return f"in the written statement `{lines[span.line - 1].strip()}`"
