"""Pictures: fixtures of DOT and code, folding, stages, files."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.graph import STAGES, DrawError, dot_of, picture_of, write
from shardlang.graph.code import code_of
from shardlang.graph.fold import join_light, join_preparation
from shardlang.graph.picture import Arrow, Box, BoxKind, Drawn, Picture, common_module
from shardlang.graph.repeats import fold_repeats
from shardlang.spec import load_spec, load_spec_text
from tests.commands import ROOT, shardlang
from tests.plan.plans import FSDP, HERE, SP, STACK, TP, compiled

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = {"tp": TP, "sp": SP, "stack": STACK, "fsdp": FSDP}


def compiled_to(stage: Drawn, text: str) -> Compiled:
    """A spec compiled with the passes of a stage, anew."""
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    return compile_spec(spec, passes=STAGES[stage])


def same_as_fixture(name: str, text: str) -> None:
    """Compare with a fixture; SHARDLANG_UPDATE=1 writes it anew."""
    path = FIXTURES / name
    if os.environ.get("SHARDLANG_UPDATE"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", TEXTS)
def test_dot(name: str) -> None:
    same_as_fixture(f"{name}.dot", dot_of(compiled(TEXTS[name]), Drawn.REWRITTEN))


@pytest.mark.parametrize("stage", [Drawn.TRACED, Drawn.PROPAGATED], ids=str)
def test_dot_of_earlier_stages(stage: Drawn) -> None:
    same_as_fixture(f"sp.{stage}.dot", dot_of(compiled_to(stage, SP), stage))


def test_the_page_shows_the_code() -> None:
    spec, _ = load_spec(ROOT / "examples/megatron_mlp/mlp.shard")
    assert spec is not None
    page = (ROOT / "docs" / "plan-and-graph.md").read_text()
    assert f"```python\n{code_of(compile_spec(spec))}```\n" in page


def test_the_same_spec_gives_the_same_text() -> None:
    once, again = compiled(STACK), compiled_to(Drawn.REWRITTEN, STACK)
    assert dot_of(once) == dot_of(again)
    assert code_of(once) == code_of(again)


def test_repeated_layers_are_drawn_once() -> None:
    whole = picture_of(compiled(FSDP), Drawn.REWRITTEN, factored=False)
    folded = picture_of(compiled(FSDP), Drawn.REWRITTEN)
    assert folded.repeats == {"layers.0": ("layers.{0..2}", 3)}
    layers = [box for box in whole.boxes.values() if box.module.startswith("layers.")]
    drawn = [box for box in folded.boxes.values() if box.module.startswith("layers.")]
    assert len(layers) == 3 * len(drawn)
    assert '"layers.{0..2}  ×3"' in dot_of(compiled(FSDP), Drawn.REWRITTEN)
    assert "×" not in dot_of(compiled(FSDP), Drawn.REWRITTEN, factored=False)


def test_a_layer_that_differs_stands_alone() -> None:
    """What the last block gives is invariant, so its all-reduce has nothing to do backward."""
    found = picture_of(compiled(STACK), Drawn.REWRITTEN).repeats
    assert found == {"layers.0": ("layers.{0..1}", 2)}


def test_every_collective_has_its_shape() -> None:
    text = dot_of(compiled(SP), Drawn.REWRITTEN)
    assert re.search(r'"all_gather" \[label="all_gather tp.*shape="house"', text)
    assert re.search(r'"reduce_scatter" \[label="reduce_scatter tp.*shape="invhouse"', text)
    assert 'shape="octagon"' in dot_of(compiled(TP))


def test_what_is_left_out_leads_nowhere() -> None:
    """Every box but a leaf has a source, and every arrow joins two boxes."""
    for text in TEXTS.values():
        for factored in (True, False):
            picture = picture_of(compiled(text), Drawn.REWRITTEN, factored)
            into = picture.into()
            fed = {name for name, arrows in into.items() if arrows}
            rest = {b.kind for name, b in picture.boxes.items() if name not in fed}
            assert rest <= {"param", "input"}
            assert nx.is_directed_acyclic_graph(nx.DiGraph(list(picture.arrows)))


@st.composite
def programs(draw: st.DrawFn) -> Picture:
    """Random pictures of light and heavy ops in two modules, every op fed by earlier ones."""
    made = Picture()
    for i in range(draw(st.integers(2, 14))):
        module, light = draw(st.sampled_from(["a", "b"])), draw(st.booleans())
        made.add(Box(f"n{i}", BoxKind.OP, module, (f"op{i}",), f"op{i}", light, (f"op{i}",)))
        for source in draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else ():
            made.connect(Arrow(f"n{source}", f"n{i}"))
    return made


@given(programs())
def test_joining_light_ops_makes_no_circle_and_loses_no_op(picture: Picture) -> None:
    joined = join_light(picture)
    assert nx.is_directed_acyclic_graph(nx.DiGraph(list(joined.arrows)))
    names = sorted(name for box in joined.boxes.values() for name in box.names)
    assert names == sorted(name for box in picture.boxes.values() for name in box.names)
    assert all(box.id == name for name, box in joined.boxes.items())
    heavy = [box for box in picture.boxes.values() if not box.light]
    assert all(joined.boxes[box.id].names == box.names for box in heavy)


def test_preparation_around_a_collective_makes_no_circle() -> None:
    """`a -> gather -> b` and `a -> b`: a and b stay apart, b and c become one."""
    made, op = Picture(), BoxKind.OP
    for name, kind in (("a", op), ("gather", BoxKind.RESHARD), ("b", op), ("c", op)):
        made.add(Box(name, kind, "", (name,), name))
    for ends in (("a", "gather"), ("gather", "b"), ("a", "b"), ("b", "c")):
        made.connect(Arrow(*ends))
    joined = join_preparation(made)
    assert list(joined.boxes) == ["a", "gather", "b"]
    assert joined.boxes["b"].lines == ("2 ops without parameters", "b, c")


def layered(*heights: int) -> Picture:
    """Layers in a row, each a chain of as many ops."""
    made, before = Picture(), None
    for number, height in enumerate(heights):
        for i in range(height):
            box = Box(f"l{number}.{i}", BoxKind.OP, f"net.{number}", ("op",), "op")
            made.add(box)
            if before is not None:
                made.connect(Arrow(before, box.id))
            before = box.id
    made.add(Box("end", BoxKind.OUTPUT, "", ("out",)))
    made.connect(Arrow(before or "", "end"))
    return made


def test_runs_of_layers() -> None:
    folded = fold_repeats(layered(2, 3, 3, 3, 1))
    assert folded.repeats == {"net.1": ("net.{1..3}", 3)}
    assert list(folded.boxes) == ["l0.0", "l0.1", "l1.0", "l1.1", "l1.2", "l4.0", "end"]
    assert ("l1.2", "l4.0") in folded.arrows
    assert fold_repeats(layered(2, 3)).repeats == {}
    assert ("l1.1", "end") in fold_repeats(layered(3, 2, 2)).arrows


def test_common_module() -> None:
    assert common_module(["a.b.c", "a.b.d", "a.b"]) == "a.b"
    assert common_module(["a", "b"]) == ""


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = dot_of(compiled(TP))
    write(text, tmp_path / "a.dot")
    assert (tmp_path / "a.dot").read_text() == text
    if shutil.which("dot"):
        write(text, tmp_path / "a.svg")
        assert "</svg>" in (tmp_path / "a.svg").read_text()
        write(text, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DrawError, match="cannot draw"):
        write(text, tmp_path / "a.gif")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DrawError, match="Graphviz is not installed"):
        write(text, tmp_path / "b.svg")


def test_command(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text((HERE / "models.py").read_text())
    (tmp_path / "tp.shard").write_text(TP)
    status, out, _ = shardlang("graph", tmp_path / "tp.shard")
    assert (status, out) == (0, dot_of(compiled(TP)).replace("spec.shard", "tp.shard"))
    status, out, err = shardlang("graph", tmp_path / "tp.shard", "-o", tmp_path / "tp.dot")
    assert (status, out) == (0, "")
    assert "wrote" in err
    status, _, err = shardlang("graph", tmp_path / "tp.shard", "-o", "tp.gif")
    assert status == 2
    assert "ends in none of" in err
