"""Text to tree: what is refused and where, and that nothing is ever raised."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardlang.grammar import tree as t
from shardlang.grammar.build import _STATEMENTS
from shardlang.grammar.diagnostics import Diagnostic
from shardlang.grammar.formatter import format_tree
from shardlang.grammar.parser import make_lark, parse
from shardlang.grammar.scan import FORMS
from tests.random_specs import SpecMaker, mutate

HERE = Path(__file__).parent
EVERYWHERE = """
mesh { W = W W = 2 over W as data W = 3 } dims { W = W W, x = W*W W = _ } let W = W model W(W = W)
input W, W : W[W, 2] below W [W, W*W(W)] +W output W [W] loss W store "a" over W*W
value "m".out.W [W] data "a" packed (W = W) optimizer W(W = W) group "a", "b" (W = W)
pipeline W { split "a" schedule W(W = W) microbatches W } learning_rate W(W = W) random fast
accumulate W checkpoint every W keep W keep_every W on_nan skip evaluate every W batches W
precision { compute = W master = W reduce = W loss_scale = W } schedule { prefetch W }
cluster { peak W = W }
expect { forbid all_reduce over W all_reduce over W == W all_gather < 2 }
"""
"""Every place where a name can stand, as W."""

randoms = st.randoms(use_true_random=False)


def cases(path: Path) -> list[tuple[str, str]]:
    """The cases of a `refused.txt`: text and expected findings."""
    _, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    parts = (case.rpartition("\n=> ") for case in body.rstrip("\n").split("\n----\n"))
    return [(text, wanted) for text, _, wanted in parts]


def places(findings: list[Diagnostic]) -> str:
    return " ".join(f"{f.code}:{f.span.line}:{f.span.column}" for f in findings)


@pytest.mark.parametrize(("text", "wanted"), cases(HERE / "refused.txt"))
def test_refused(text: str, wanted: str) -> None:
    tree, findings = parse(text)
    assert tree is None
    assert places(findings) == wanted
    for finding in findings:
        assert finding.help
        assert not finding.message.endswith(".")
        assert finding.message[0] in "`" or finding.message[0].islower()


@pytest.mark.parametrize(
    "source", sorted(HERE.glob("fixtures/format/*.in.shard")), ids=lambda p: p.name
)
def test_formatted(source: Path) -> None:
    wanted = source.with_name(source.name.replace(".in.", ".out.")).read_text(encoding="utf-8")
    tree, findings = parse(source.read_text(encoding="utf-8"))
    assert tree is not None, findings
    assert format_tree(tree) == wanted
    again, _ = parse(wanted)
    assert again == tree


def test_the_grammar_has_no_collisions() -> None:
    pytest.importorskip("interegular")
    make_lark(strict=True)


def test_every_statement_has_its_form() -> None:
    assert tuple(FORMS) == tuple(_STATEMENTS)


@pytest.mark.parametrize(
    "word",
    [
        *FORMS,
        "split",
        "stage",
        "microbatches",
        "in",
        "out",
        "bytes",
        "forward",
        "all_reduce",
        "auto",
        "_x",
    ],
)
def test_the_words_of_the_language_are_legal_names(word: str) -> None:
    text = EVERYWHERE.replace("W", word)
    tree, findings = parse(text)
    assert tree is not None, findings
    assert len(tree.statements) == 22


@pytest.mark.parametrize("text", ['mesh {\n  dp = 2\n}\nlet x = 1\nparam "π*" [dp]\n'])
def test_spans_are_exclusive_and_count_from_one(text: str) -> None:
    tree, _ = parse(text, "x.shard")
    assert tree is not None
    mesh, let, param = tree.statements
    assert (mesh.span.start, mesh.span.end) == ((1, 1), (3, 2))
    assert isinstance(let, t.Let)
    assert str(let.value.span) == "x.shard:4:9"
    assert isinstance(param, t.Param)
    assert (param.pattern.span.start, param.pattern.span.end) == ((5, 7), (5, 11))


@settings(max_examples=300)
@given(randoms, st.sampled_from([0.0, 0.3]))
def test_parsing_the_printed_tree_gives_the_tree(rng: object, wild: float) -> None:
    tree = SpecMaker(rng, wild).anything()  # type: ignore[arg-type]
    text = format_tree(tree)
    parsed, findings = parse(text)
    assert parsed == tree, (text, findings)
    assert format_tree(parsed) == text


@settings(max_examples=300)
@given(st.text() | st.text(alphabet='mesh{}[]()=,:.*+#"\n over1_? '))
def test_no_text_raises(text: str) -> None:
    tree, findings = parse(text)
    assert (tree is None) == any(finding.is_error for finding in findings)


@settings(max_examples=200)
@given(randoms)
def test_no_mutation_raises(rng: object) -> None:
    maker = SpecMaker(rng, 0.1)  # type: ignore[arg-type]
    text = mutate(format_tree(maker.anything()), rng)  # type: ignore[arg-type]
    tree, findings = parse(text)
    assert (tree is None) == any(finding.is_error for finding in findings)
    if tree is not None:
        assert parse(format_tree(tree))[0] == tree


def test_many_errors_end() -> None:
    _, findings = parse("parm\n" * 5000)
    assert findings
