"""The spec itself: statements as a syntax tree, in the formatter's form, with comments."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardlang.capture import InputSpec
from shardlang.grammar import tree as t
from shardlang.grammar.formatter import format_tree
from shardlang.init.axes import Roles
from shardlang.init.layouts import Entry, Layouts
from shardlang.init.model import Target
from shardlang.init.names import patterns_for
from shardlang.init.residual import SplitValue
from shardlang.ir.printed_type import dtype_name

_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a spec is written from.

    Attributes:
        shapes: every parameter of the model, in its order.
        buffers: every buffer.
        aliases: the other names of tied parameters.
        values: modules' results that are split over the model axis.
        remarks: what the person should know, one comment each.
    """

    command: str
    folder: Path
    target: Target
    roles: Roles
    inputs: tuple[InputSpec, ...]
    layouts: Layouts
    shapes: dict[str, tuple[int, ...]]
    buffers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    values: tuple[SplitValue, ...] = ()
    remarks: tuple[str, ...] = ()


def spec_text(draft: Draft) -> str:
    """The spec in canonical form."""
    return format_tree(t.Tree(tuple(_statements(draft)), _foot(draft)))


def _statements(draft: Draft) -> list[t.Statement]:
    lets = _lets(draft)
    found: list[t.Statement] = [_mesh(draft)]
    found += [t.Let(t.Ident(name), t.Number(size)) for name, size in lets.items()]
    found.append(_model(draft))
    found += _inputs(draft, {size: name for name, size in lets.items()})
    found += _params(draft)
    found += _values(draft)
    if draft.roles.stored:
        over = _product(axis.name for axis in draft.roles.stored)
        comment = ("", "# At rest every parameter is split over these too, and gathered before use")
        found.append(t.Store(t.Text("**"), over, trivia=t.Trivia(before=comment)))
    return found


def _comment(text: str) -> tuple[str, ...]:
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return tuple(f"# {line}" for line in lines)


def _product(names: Iterable[str]) -> t.Product:
    return t.Product(tuple(t.Ident(name) for name in names))


def _mesh(draft: Draft) -> t.Mesh:
    roles = draft.roles
    use = {axis: "the batch" for axis in roles.batch}
    if roles.model is not None:
        use[roles.model] = "parameters and their computation"
    if roles.experts is not None:
        use[roles.experts] = "experts"
    axes = tuple(
        t.AxisDecl(
            t.Ident(axis.name), t.Number(axis.size),
            trivia=t.Trivia(after=f"# {use[axis]}" if axis in use else ""),
        )
        for axis in roles.mesh.axes
    )  # fmt: skip
    head = [*_comment(f"Written by `{draft.command}`.")]
    if roles.model is not None:
        over = roles.model.name
        head += _comment(
            f"{draft.layouts.percent:.1f}% of the bytes of all matrices are split over {over}."
        )
    return t.Mesh(axes, trivia=t.Trivia(before=tuple(head)))


def _lets(draft: Draft) -> dict[str, int]:
    """Names for the sizes of the batch and of sequences, where several inputs share them."""
    taken = {axis.name for axis in draft.roles.mesh.axes}
    shapes = [spec.shape for spec in draft.inputs]
    found: dict[str, int] = {}
    firsts = {shape[0] for shape in shapes if shape}
    if len(firsts) == 1 and "batch" not in taken:
        found["batch"] = firsts.pop()
    lengths = {
        s.shape[1] for s in draft.inputs if len(s.shape) == 2 and not s.dtype.is_floating_point
    }
    if len(lengths) == 1 and "seq" not in taken and lengths != set(found.values()):
        found["seq"] = lengths.pop()
    return found


def _model(draft: Draft) -> t.Model:
    target = draft.target
    path = Path(os.path.relpath(target.path.absolute(), draft.folder.absolute())).as_posix()
    if target.function is not None:
        return t.Model(t.Text(f"{path}:{target.function}"), target.arguments)
    arguments = [t.Argument(None, t.Text(path))]
    if target.task is not None:
        arguments.append(t.Argument(t.Ident("task"), t.Text(target.task)))
    why = ("# The config names no class of its own: this task is a guess",) if target.chosen else ()
    arguments += target.arguments
    return t.Model(t.Ident("hf"), tuple(arguments), trivia=t.Trivia(before=why))


def _inputs(draft: Draft, named: dict[int, str]) -> list[t.Statement]:
    """One statement for all inputs of one type."""
    groups: dict[tuple[str, tuple[int, ...], int | None], list[str]] = {}
    for spec in draft.inputs:
        groups.setdefault((dtype_name(spec.dtype), spec.shape, spec.below), []).append(spec.name)
    found: list[t.Statement] = []
    for (dtype, shape, below), names in groups.items():
        refs = tuple(t.Ident(n) if n.isidentifier() else t.Text(n) for n in names)
        integral = not dtype.startswith(("f", "bf", "c"))
        sizes = tuple(
            t.Ident(named[size])
            if size in named and (named[size] == "batch" if place == 0 else integral and place == 1)
            else t.Number(size)
            for place, size in enumerate(shape)
        )
        bound = None if below is None else t.Number(below)
        layout = t.Layout(_batch_entries(draft.roles, shape, draft.inputs))
        found.append(t.Input(refs, t.Ident(dtype), sizes, bound, layout))
    return found


def _batch_entries(
    roles: Roles, shape: Sequence[int], inputs: Sequence[InputSpec]
) -> tuple[t.Entry, ...]:
    """The batch over the data axes, all else whole."""
    firsts = [spec.shape[0] for spec in inputs if spec.shape]
    usual = max(set(firsts), key=firsts.count) if firsts else 0
    batched = bool(roles.batch) and bool(shape) and shape[0] == usual >= roles.shards
    head = t.AxesEntry(_product(axis.name for axis in roles.batch)) if batched else t.WholeEntry()
    return tuple(head if dim == 0 else t.WholeEntry() for dim in range(len(shape)))


def _params(draft: Draft) -> list[t.Statement]:
    """One statement for each layout within a group, under the group's title."""
    groups: dict[str, dict[tuple[bool, tuple[t.Entry, ...]], list[str]]] = {}
    for name, shape in {**draft.shapes, **draft.buffers}.items():
        if name in draft.layouts.entries:
            layout = name in draft.buffers, _entries(draft.layouts.entries[name], len(shape))
            groups.setdefault(draft.layouts.titles[name], {}).setdefault(layout, []).append(name)
    found: list[t.Statement] = []
    for title, layouts in groups.items():
        before: tuple[str, ...] = ("", f"# {title[0].upper()}{title[1:]}")
        for (is_buffer, entries), names in layouts.items():
            kind: type[t.Buffer] | type[t.Param] = t.Buffer if is_buffer else t.Param
            others = draft.buffers if is_buffer else [*draft.shapes, *draft.aliases]
            allowed = [n for n in others if draft.aliases.get(n) not in names]
            for pattern in patterns_for(names, allowed):
                trivia = t.Trivia(before=before)
                found.append(kind(t.Text(pattern), t.Layout(entries), trivia=trivia))
                before = ()
    return found


def _entries(split: dict[int, Entry], rank: int) -> tuple[t.Entry, ...]:
    return tuple(_entry(split[dim]) if dim in split else t.WholeEntry() for dim in range(rank))


def _entry(entry: Entry) -> t.AxesEntry:
    return t.AxesEntry(_product(entry.axes), tuple(t.Number(size) for size in entry.blocks))


def _values(draft: Draft) -> list[t.Statement]:
    """Results that are split over the model axis: one statement for those split alike."""
    roles = draft.roles
    if roles.model is None:
        return []
    batch: t.Entry = (
        t.AxesEntry(_product(axis.name for axis in roles.batch)) if roles.batch else t.WholeEntry()
    )
    split = t.AxesEntry(_product([roles.model.name]))
    groups: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for value in draft.values:
        groups.setdefault((value.path, value.dim), []).append(value.module)
    found: list[t.Statement] = []
    before: tuple[str, ...] = ("", "# The residual stream")
    for (path, dim), modules in groups.items():
        layout = t.Layout((batch, *(split if at == dim else t.WholeEntry() for at in (1, 2))))
        for pattern in patterns_for(modules, ()):
            trivia = t.Trivia(before=before)
            selector = t.Selector("out", path)
            found.append(t.ValueStatement(t.Text(pattern), selector, layout, trivia=trivia))
            before = ()
    return found


def _foot(draft: Draft) -> tuple[str, ...]:
    """What is left whole, and what else there is to know."""
    lines: list[str] = []
    if draft.roles.model is not None:
        lines += [line for text in _left_whole(draft) for line in _comment(text)]
    lines += [line for text in draft.remarks for line in _comment(text)]
    return ("", *lines) if lines else ()


def _left_whole(draft: Draft) -> list[str]:
    """The parameters that no statement splits, matrices first."""
    stated = draft.layouts.entries
    whole = [name for name in draft.shapes if name not in stated]
    matrices = [name for name in whole if name in draft.layouts.matrices]
    others = [name for name in whole if name not in draft.layouts.matrices]
    assert draft.roles.model is not None
    over = draft.roles.model.name
    texts = []
    for names, what in ((matrices, "Matrices"), (others, "Other parameters")):
        if names:
            rest = [n for n in draft.shapes if n not in names]
            texts.append(f"{what} left whole over {over}: {', '.join(patterns_for(names, rest))}")
    return texts
