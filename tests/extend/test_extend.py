"""Rules of a program's own ops: declared in one line, compiled, and proven with one call."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import shardlang
from shardlang.capture.python_file import load_file
from shardlang.extend import ProofError, RuleError
from tests.commands import ROOT, document
from tests.commands import shardlang as command

HERE = Path(__file__).parent
SPEC = HERE / "own_ops.shard"


def product() -> Any:
    """The model's custom op. Executing its file anew makes torch drop the op of the time before."""
    return load_file(HERE / "own_ops.py").product


def normed() -> Any:
    """The model's region."""
    return load_file(HERE / "own_ops.py").normed


def test_an_op_of_the_models_own_is_proven_with_one_call() -> None:
    proof = shardlang.prove(product(), torch.randn(5, 7), torch.randn(7, 6))
    assert proof.assignments > 20
    assert str(proof).startswith("shardlang_tests::product")


def test_a_region_is_proven_with_one_call() -> None:
    proof = shardlang.prove(normed(), torch.randn(13, 7), torch.randn(7), eps=1e-3)
    assert proof.assignments > 3
    assert proof.rule.whole == {"d"}


def test_the_model_that_uses_them_computes_the_same() -> None:
    found = document("verify", SPEC)
    assert found["loss"]["error"] < 1e-9
    assert found["gradients"]["max_error"] < 1e-9
    assert found["gradients"]["count"] == 3


def test_a_region_has_the_gradient_of_its_own_operators() -> None:
    x, scale = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), 5)
    )
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * scale
    seed = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, (x, scale), seed)
    found = torch.autograd.grad(normed()(x, scale), (x, scale), seed)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_an_op_without_its_rule_is_refused(tmp_path: Path) -> None:
    text = (HERE / "own_ops.py").read_text()
    bare = text.replace('@shardlang.rule("m k, k n -> m n", linear=["x", "w"])\n', "")
    bare = bare.replace("shardlang_tests::product", "shardlang_tests::bare")
    (tmp_path / "own_ops.py").write_text(bare)
    (tmp_path / "own_ops.shard").write_text(SPEC.read_text())
    status, out, _ = command("check", tmp_path / "own_ops.shard")
    assert status == 1
    assert "SH0401" in out


def test_a_fault_in_a_declaration_is_one_finding_at_the_models_line(tmp_path: Path) -> None:
    text = (HERE / "own_ops.py").read_text().replace('"m k, k n -> m n"', '"m k -> m"')
    (tmp_path / "own_ops.py").write_text(text)
    (tmp_path / "own_ops.shard").write_text(SPEC.read_text())
    status, out, _ = command("check", tmp_path / "own_ops.shard", "--json")
    assert status == 1
    assert "SH0350" in out and "has 1 operands" in out


@shardlang.local("b d, d -> b d")
def _summed(x: Tensor, scale: Tensor) -> Tensor:
    """Not split along `d` as its rule claims: every element needs the whole row."""
    return x * x.sum(-1, keepdim=True) * scale


@shardlang.local("b d, d -> b", linear=["x", "w"])
def _squared(x: Tensor, w: Tensor) -> Tensor:
    """A sum over `d`, but not linear in `w`."""
    return (x * w * w).sum(-1)


@shardlang.local("b d, d -> b", linear=["x"])
def _weighed(x: Tensor, w: Tensor) -> Tensor:
    """The same with a rule that is right."""
    return (x * w * w).sum(-1)


@shardlang.local("b... d!, b... d! -> b... d!, b...")
def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two results, one of them an operand itself."""
    return x, (x * y).sum(-1)


@pytest.mark.parametrize(
    ("op", "where"), [(_summed, "a=2: d"), (_squared, "linear in 1")], ids=["split", "linear"]
)
def test_a_rule_that_is_wrong_is_caught(op: Any, where: str) -> None:
    with pytest.raises(ProofError, match=re.escape(where)):
        shardlang.prove(op, torch.randn(5, 7), torch.randn(7))


def test_rules_that_are_right_are_proven() -> None:
    assert shardlang.prove(_weighed, torch.randn(5, 7), torch.randn(7)).assignments > 10
    assert shardlang.prove(_pair, torch.randn(5, 4, 7), torch.randn(5, 4, 7)).assignments > 5


def _declared(spec: str, **options: Any) -> Any:
    return lambda: shardlang.rule(product(), spec, **options)


def _unannotated(x):  # type: ignore[no-untyped-def]
    return x


REFUSED = {
    "no such operand count": (_declared("m k -> m"), "has 1 operands"),
    "malformed": (_declared("m k, (k n -> m n"), "the rule of"),
    "no such argument": (_declared("m k, k n -> m n", linear=["z"]), "no tensor `z`"),
    "a rule already": (
        lambda: shardlang.rule(torch.ops.aten.mm.default, "m k, k n -> m n"), "has a rule already",
    ),
    "several overloads": (
        lambda: shardlang.rule(torch.ops.aten.add, "a, a -> a"), "name one of them",
    ),
    "no annotations": (lambda: shardlang.local("a -> a")(_unannotated), "cannot be made an op"),
    "no op": (lambda: shardlang.rule(3, "a -> a"), "is neither an op nor a function"),
    "another reduction": (
        lambda: shardlang.rule(product(), "m k, k n -> m n", reduce="mean"), "not `mean`",
    ),
    "nothing declared": (lambda: shardlang.prove(_unannotated, 1), "is not an op"),
    "too small": (
        lambda: shardlang.prove(product(), torch.randn(1, 7), torch.randn(7, 6)), "too small",
    ),
    "unstated": (lambda: shardlang.rule(_unannotated), "has no rule; state it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_declared_or_proven_says_so(case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises(RuleError, match=re.escape(message)):
        act()


def test_the_example_of_the_page_works() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), names)
    assert names["proof"].assignments > 10
