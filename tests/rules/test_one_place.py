"""What is known of an op stands in its rule: nothing else decides by the names of ops."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardlang.rules.registry import RULES
from shardlang.rules.schema import short_name

ROOT = Path(__file__).parent.parent.parent

ALLOWED = {
    "passes/invariants/traced.py": "the ops that normalization leaves in no graph",
    "passes/normalize/": "writes ops in place of others, in one form each",
    "passes/step/": "writes the ops of the backward, in one form each",
    "shardlang/vjp/": "writes the ops of a trace, in one form each",
    "runtime/direct.py": "the functions of torch that call ops at less cost",
    "runtime/tensor_": "ops of optimizers and loops on sharded tensors, outside programs",
    "shardlang/capture/compute.py": "finds casts in the graph",
    "shardlang/capture/hf": "the names of settings of transformers",
    "shardlang/capture/raise_dtype.py": "writes casts into the graph",
    "shardlang/capture/tape.py": "replays what constructors did, in-place ops mostly",
    "shardlang/ir/compat.py": "lists the ops that torch has",
    "shardlang/ir/own_ops.py": "defines the ops of our own",
    "shardlang/proof/rules/": "calls ops on numbers, to prove their rules",
}
"""Files that name ops, or where their names begin, to the reason."""

NAMES = {short_name(target) for target in RULES}


def named_ops(text: str) -> Iterator[str]:
    """Ops that a file names: below `torch.ops`, or by a string that is nothing but such a name.

    Names of one English word, such as `sum`, count in collections of three or more only.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and _is_op(ast.unparse(node)):
            yield ast.unparse(node)
        elif isinstance(node, (ast.Set, ast.List, ast.Tuple, ast.Dict)):
            parts = node.keys if isinstance(node, ast.Dict) else node.elts
            words = [part.value for part in parts if _is_name(part)]
            if len(words) >= 3:
                yield from words
        elif _is_name(node) and "_" in node.value.strip("_"):
            yield node.value


def _is_op(text: str) -> bool:
    return text.startswith(("torch.ops.", "aten.", "prims."))


def _is_name(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES


def files() -> Iterator[str]:
    """All files of the package but the rules."""
    for folder in ("grammar", "passes", "runtime", "shardlang"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_relative_to(ROOT / "shardlang" / "rules"):
                continue
            yield name


def test_ops_are_named_in_rules_alone() -> None:
    found = {name: sorted(set(named_ops((ROOT / name).read_text()))) for name in files()}
    wrong = {
        name: ops for name, ops in found.items() if ops and not name.startswith(tuple(ALLOWED))
    }
    assert wrong == {}


@pytest.mark.parametrize("start", ALLOWED)
def test_every_exception_is_needed(start: str) -> None:
    assert any(list(named_ops((ROOT / n).read_text())) for n in files() if n.startswith(start))


@pytest.mark.parametrize(
    "text",
    [
        "if node.target is aten.embedding.default: pass",
        "f = torch.ops.aten.mul.Tensor",
        '_VIEWS = {"view", "reshape", "transpose"}',
        'if op_name(node) == "cross_entropy_loss": pass',
    ],
)
def test_names_are_found(text: str) -> None:
    assert list(named_ops(text))


def test_words_are_no_names() -> None:
    assert list(named_ops('kind = "sum"\nwhat = ("max", "min")\n"""A view, a reshape."""')) == []
