"""Which modules of a model make the stages that a spec states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shardlang.bind.statements import Findings
from shardlang.bind.values import MODULE
from shardlang.compiler.auto_split import auto_split
from shardlang.compiler.chain import module_lists
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error, join_words, quote
from shardlang.grammar.patterns import Pattern, nearest_to_pattern
from shardlang.ir.pipeline.split import Split
from shardlang.spec.types import SplitDecl


def split_of(compiled: Compiled, stages: int) -> Split:
    """The stages of the model.

    Args:
        stages: how many the schedule has.

    Raises:
        CompileError: SH0313 or SH0301, a module does not exist or is in two stages, or there are
            too few.
    """
    stated = compiled.spec.pipeline
    assert stated is not None, "the spec states a pipeline"
    if stated.split.auto:
        return auto_split(compiled, stages)
    if stated.split.stages:
        return _listed(compiled, stated.split, stages)
    return _dealt(compiled, stated.split, stages)


def _dealt(compiled: Compiled, stated: SplitDecl, stages: int) -> Split:
    """The layers of lists, in runs."""
    lists = module_lists(compiled.captured.modules)
    named = [name for pattern, _ in stated.lists for name in pattern.select(lists)]
    unknown = [_no_list(p, at, lists) for p, at in stated.lists if not p.select(lists)]
    if unknown or (again := list(_again(stated, lists))):
        raise CompileError(unknown or again)
    layers = [layer for name in dict.fromkeys(named) for layer in lists[name]]
    if len(layers) < stages:
        raise CompileError([_too_few(len(layers), stages, stated.span)])
    return Split.dealt(layers, stages)


def _again(stated: SplitDecl, lists: Mapping[str, Sequence[str]]) -> Iterator[Diagnostic]:
    """The patterns whose lists are all named by those before them."""
    named = set[str]()
    for pattern, at in stated.lists:
        found = pattern.select(lists)
        if named.issuperset(found):
            message = f"the lists of `{pattern}` are named before it"
            yield error("SH0313", message, at, help="leave it out")
        named.update(found)


def _listed(compiled: Compiled, stated: SplitDecl, stages: int) -> Split:
    """The stages as they are listed."""
    if len(stated.stages) != stages:
        raise CompileError([_other_number(len(stated.stages), stages, stated.span)])
    modules = [name for name in compiled.captured.modules if name]
    findings, stage_of = Findings(compiled.spec.mesh), dict[str, int]()
    places: dict[str, Span] = {}
    for stage, patterns in enumerate(stated.stages):
        for pattern, at in patterns:
            matched = pattern.select(modules)
            if not matched:
                findings.unmatched(pattern, at, MODULE, modules)
            for name in matched:
                if stage_of.setdefault(name, stage) != stage:
                    findings.found.append(_twice(name, stage_of[name], stage, at, places[name]))
                places.setdefault(name, at)
    if findings.found:
        raise CompileError(findings.found)
    return Split(stage_of, stages)


def _no_list(pattern: Pattern, at: Span, lists: Mapping[str, Sequence[str]]) -> Diagnostic:
    named = sorted((name for name in lists if name), key=len)
    near = nearest_to_pattern(pattern.text, named, 1)
    if near:
        help = f"the nearest list is `{near[0]}`"
    elif named:
        help = f"lists of the model are {join_words(quote(named[:4]), 'and')}"
    else:
        help = "the model has none, so it cannot be split: remove the pipeline"
    word = "matches no" if pattern.literal is None else "is no"
    return error("SH0313", f"`{pattern}` {word} list of modules", at, help=help)


def _too_few(layers: int, stages: int, at: Span) -> Diagnostic:
    return error(
        "SH0313",
        f"{layers} layers are too few for {stages} stages",
        at,
        help="make the axis of the pipeline smaller, or give each device fewer stages",
    )


def _other_number(listed: int, stages: int, at: Span) -> Diagnostic:
    return error(
        "SH0313",
        f"{listed} stages are listed, and the schedule has {stages}",
        at,
        help=f"list {stages} stages, or choose another size of the axis or another schedule",
    )


def _twice(name: str, first: int, again: int, at: Span, place: Span) -> Diagnostic:
    return error(
        "SH0313",
        f"`{name}` is in stage {first} and in stage {again}",
        at,
        labels=[Label(place, "first listed here")],
        help="list it once",
    )
