"""The `model` and `optimizer` statements: what is called, and with which arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error
from shardlang.grammar.patterns import nearest
from shardlang.spec.draft import Draft
from shardlang.spec.gather import is_path
from shardlang.spec.optimizers import check_optimizer_argument, check_optimizer_name
from shardlang.spec.scope import Scope
from shardlang.spec.types import Arguments, LiteralValue, ModelRef, OptimizerDecl

_MODES = ("train", "eval")
_PYTHON_HELP = 'write `model "file.py:function"(width = 64)`'


def resolve_model(node: t.Model, draft: Draft) -> None:
    """Resolve `model`; its paths are relative to the file that writes it."""
    draft.state("model", "", node.span)
    hf = isinstance(node.source, t.Ident)
    positional, named = _arguments(node.arguments, draft.scope, 1 if hf else 0)
    _check_mode(node, named, draft.scope)
    draft.model = _hf(node, positional, named, draft) if hf else _python(node, named, draft)


def _hf(
    node: t.Model, positional: list[LiteralValue], named: Arguments, draft: Draft
) -> ModelRef | None:
    if node.source.text != "hf":
        near = nearest(node.source.text, ["hf"])
        help = "did you mean `hf`" if near else f'write `hf("config.json")`, or {_PYTHON_HELP}'
        message = f"unknown kind of model `{node.source.text}`"
        draft.scope.report(error("SH0215", message, node.source.span, help=help))
        return None
    if not positional or not isinstance(positional[0], str) or not is_path(positional[0]):
        message = "`hf` takes the path of a config first"
        help = 'write `model hf("config.json", task = "causal-lm")`'
        draft.scope.report(error("SH0215", message, node.source.span, help=help))
        return None
    path = _absolute(draft.folder, positional[0])
    return ModelRef("hf", path, None, named, node.span)


def _python(node: t.Model, named: Arguments, draft: Draft) -> ModelRef | None:
    file, _, function = node.source.text.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier() or not is_path(file):
        message = f"`{node.source.text}` does not name a function in a file"
        draft.scope.report(error("SH0215", message, node.source.span, help=_PYTHON_HELP))
        return None
    path = _absolute(draft.folder, file)
    return ModelRef("python", path, function, named, node.span)


def _absolute(folder: Path, text: str) -> Path:
    """The path from the folder of the file that writes it; it need not exist."""
    return (folder.absolute() / text).resolve()


def _check_mode(node: t.Model, named: Arguments, scope: Scope) -> None:
    mode = dict(named).get("mode", "train")
    if mode in _MODES:
        return
    span = next(a.value.span for a in node.arguments if a.name and a.name.text == "mode")
    near = nearest(str(mode), _MODES)
    help = f"did you mean `{near[0]}`" if near else 'write `mode = "train"` or `mode = "eval"`'
    scope.report(error("SH0224", f"unknown mode `{mode}`", span, help=help))


def _arguments(
    nodes: Sequence[t.Argument], scope: Scope, most_positional: int
) -> tuple[list[LiteralValue], Arguments]:
    """The positional and the named arguments, with findings for misplaced ones."""
    positional: list[LiteralValue] = []
    named: dict[str, LiteralValue] = {}
    for node in nodes:
        value = _value(node.value, scope)
        if node.name is None and (len(positional) == most_positional or named):
            message = "unexpected argument without a name"
            scope.report(error("SH0216", message, node.span, help="write `name = value`"))
        elif node.name is not None and node.name.text in named:
            message = f"argument `{node.name.text}` is given twice"
            scope.report(error("SH0216", message, node.name.span, help="drop one of them"))
        elif value is not None and node.name is None:
            positional.append(value)
        elif value is not None and node.name is not None:
            named[node.name.text] = value
    return positional, tuple(named.items())


def _value(node: t.Value, scope: Scope) -> LiteralValue | None:
    if not isinstance(node, t.ListValue):
        return scope.scalar(node)
    items = [scope.scalar(item) for item in node.items]
    if any(item is None for item in items):
        return None
    return tuple(item for item in items if item is not None)


def resolve_optimizer(node: t.Optimizer, draft: Draft) -> None:
    """Resolve `optimizer`."""
    draft.state("optimizer", "", node.span)
    _, named = _arguments(node.arguments, draft.scope, 0)
    unknown = check_optimizer_name(node.name.text, node.name.span)
    if unknown is not None:
        draft.scope.report(unknown)
        return
    nodes = {a.name.text: a for a in node.arguments if a.name is not None}
    for name, value in named:
        place = nodes[name]
        finding = check_optimizer_argument(
            node.name.text, name, value, (place.name or place).span, place.value.span
        )
        if finding is not None:
            draft.scope.report(finding)
    draft.optimizer = OptimizerDecl(node.name.text, named, node.span)
