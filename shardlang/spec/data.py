"""The resolver of `data`: which files, how they are cut into samples, and in which order."""

from __future__ import annotations

from collections.abc import Mapping

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.spec.arguments import named_arguments
from shardlang.spec.draft import Draft
from shardlang.spec.gather import is_path
from shardlang.spec.models import absolute
from shardlang.spec.types import DataDecl, LiteralValue

IDS, LABELS = "input_ids", "labels"
OPTIONS = {
    "validation": "a part of the samples between 0 and 1, such as 0.01",
    "shuffle": "true or false",
    "drop_last": "true or false",
    "split": 'the name of a part of a data set, such as "train"',
    "ids": 'the name of the input that takes the tokens, such as "input_ids"',
    "labels": 'the name of the input that takes the labels, such as "labels"',
}
"""The options of `data`, and what each can be."""


def resolve_data(node: t.Data, draft: Draft) -> None:
    """Resolve `data`; its path is relative to the file that writes it."""
    draft.state("data", "", node.span)
    _, named = named_arguments(node.arguments, draft.scope, 0)
    if not is_path(node.path.text):
        help = 'write the path of a file of tokens: `data "corpus.bin"`'
        draft.scope.report(error("SH0249", "no file can have this path", node.path.span, help=help))
        return
    given = dict(named)
    if all([_is_right(argument, given, draft) for argument in node.arguments]):
        draft.data = _declared(node, given, draft)


def _declared(node: t.Data, given: Mapping[str, LiteralValue], draft: Draft) -> DataDecl:
    part = given.get("validation", 0.0)
    assert isinstance(part, float), "options are checked"
    return DataDecl(
        absolute(draft.folder, node.path.text),
        node.cut,
        part,
        given.get("shuffle", True) is True,
        given.get("drop_last", False) is True,
        str(given["split"]) if "split" in given else None,
        str(given.get("ids", IDS)),
        str(given.get("labels", LABELS)),
        node.span,
    )


def _is_right(argument: t.Argument, given: Mapping[str, LiteralValue], draft: Draft) -> bool:
    """Whether an option is known and can have its value; a finding where not."""
    name = argument.name.text if argument.name is not None else ""
    if argument.name is None or (name in OPTIONS and name not in given):
        return False  # what is wrong with it is found
    if name not in OPTIONS:
        near = nearest(name, OPTIONS)
        listed = f"the options are {join_words(quote(OPTIONS), 'and')}"
        help = f"did you mean `{near[0]}`" if near else listed
        message = f"`data` has no option `{name}`"
        draft.scope.report(error("SH0249", message, argument.name.span, help=help))
        return False
    if _can_be(name, given[name]):
        return True
    message = f"`{name}` cannot be that"
    help = f"it is {OPTIONS[name]}"
    draft.scope.report(error("SH0249", message, argument.value.span, help=help))
    return False


def _can_be(name: str, value: LiteralValue) -> bool:
    if name == "validation":
        return isinstance(value, float) and 0 < value < 1
    return isinstance(value, bool if name in ("shuffle", "drop_last") else str)
