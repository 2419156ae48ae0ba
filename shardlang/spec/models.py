"""The resolver of `model`: what is called, and with which arguments."""

from __future__ import annotations

from pathlib import Path

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error
from shardlang.grammar.patterns import nearest
from shardlang.spec.arguments import named_arguments
from shardlang.spec.draft import Draft
from shardlang.spec.gather import is_path
from shardlang.spec.scope import Scope
from shardlang.spec.types import Arguments, LiteralValue, ModelRef

_MODES = ("train", "eval")
_PYTHON_HELP = 'write `model "file.py:function"(width = 64)`'


def resolve_model(node: t.Model, draft: Draft) -> None:
    """Resolve `model`; its paths are relative to the file that writes it."""
    draft.state("model", "", node.span)
    hf = isinstance(node.source, t.Ident)
    positional, named = named_arguments(node.arguments, draft.scope, 1 if hf else 0)
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
    path = absolute(draft.folder, positional[0])
    return ModelRef("hf", path, None, named, node.span)


def _python(node: t.Model, named: Arguments, draft: Draft) -> ModelRef | None:
    file, _, function = node.source.text.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier() or not is_path(file):
        message = f"`{node.source.text}` does not name a function in a file"
        draft.scope.report(error("SH0215", message, node.source.span, help=_PYTHON_HELP))
        return None
    path = absolute(draft.folder, file)
    return ModelRef("python", path, function, named, node.span)


def absolute(folder: Path, text: str) -> Path:
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
