"""Which modules of a model make the stages that a spec states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardlang.compiler.driver import Compiled, CompileError
from shardlang.grammar.diagnostics import Diagnostic, Span, error, join_words, quote
from shardlang.grammar.patterns import Pattern, nearest_to_pattern
from shardlang.ir.pipeline.split import Split


def split_of(compiled: Compiled, stages: int) -> Split:
    """The stages of the model.

    Raises:
        CompileError: SH0313, a module list does not exist, or there are too few layers.
    """
    stated = compiled.spec.pipeline
    assert stated is not None, "the spec states a pipeline"
    lists = module_lists(compiled.captured.modules)
    named = [name for pattern, _ in stated.split.lists for name in pattern.select(lists)]
    unknown = [_no_list(p, at, lists) for p, at in stated.split.lists if not p.select(lists)]
    if unknown:
        raise CompileError(unknown)
    layers = [layer for name in dict.fromkeys(named) for layer in lists[name]]
    if len(layers) < stages:
        raise CompileError([_too_few(len(layers), stages, stated.split.span)])
    return Split.dealt(layers, stages)


def module_lists(modules: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The lists of a model, by name: the modules in it that have a number, in order."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in modules:
        owner, _, number = name.rpartition(".")
        if number.isdigit():
            found.setdefault(owner, []).append((int(number), name))
    return {owner: [name for _, name in sorted(layers)] for owner, layers in found.items()}


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
