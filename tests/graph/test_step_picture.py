"""The picture of a whole step: forward, backward and update, with their collectives."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import networkx as nx
import pytest

from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.compiler.whole_step import WholeStep, whole_step
from shardlang.graph import dot_of, picture_of
from shardlang.graph.fold import join_siblings
from shardlang.graph.picture import Arrow, Box, BoxKind, Drawn, Picture, seen_from
from shardlang.ir.step import collectives_of, is_collective
from shardlang.plan.moments import Phase
from shardlang.spec import load_spec_text
from tests.commands import ROOT, shardlang
from tests.graph.test_graph import same_as_fixture
from tests.plan.plans import FSDP, HERE, SP, STACK, TP, compiled

LAYERS = Path(__file__).parent.parent / "step" / "layers.py"
DEEP = f"""
mesh {{ dp = 2 }}
model "{LAYERS}:Layers"(count = 32)
input x : f64[4, 5] [dp, _]
store "**" over dp regather
"""
ACCUMULATED = STACK + "accumulate 2"
HELD = FSDP.replace('store "**"', 'optimizer adamw(lr = 1e-3, clip = 1.0)\nstore optimizer "**"')
AGAIN = FSDP + 'recompute "layers.*"'
TEXTS = {
    "tp": TP, "sp": SP, "stack": STACK, "fsdp": FSDP, "accumulated": ACCUMULATED, "held": HELD,
    "again": AGAIN, "regather": FSDP.replace("over shard", "over shard regather"),
}  # fmt: skip


@functools.cache
def step(text: str) -> WholeStep:
    """The whole step of a spec."""
    made = whole_step(compiled(text))
    assert made is not None
    return made


@functools.cache
def drawn(text: str, factored: bool = True) -> Picture:
    """The picture of a spec's step."""
    return picture_of(compiled(text), factored=factored)


def sent(step: WholeStep) -> Counter[str]:
    """How many calls of each kind stand in the graphs of a step."""
    graphs = [step.step.graph, *([step.update.graph] if step.update else [])]
    if step.accumulated is not None:
        graphs += [x.graph for x in (step.accumulated.early, step.accumulated.finish)]
        graphs.append(step.accumulated.reduce.graph)
    calls = [collectives_of(n) for graph in graphs for n in graph.nodes if is_collective(n)]
    sending = [[c for _, c in pairs if c.sends] for pairs in calls]
    return Counter(one[0].op for one in sending if one)


@pytest.mark.parametrize("name", TEXTS)
def test_every_collective_of_the_step_is_drawn_once(name: str) -> None:
    boxes = drawn(TEXTS[name], False).boxes.values()
    found = Counter(box.op for box in boxes if box.kind is BoxKind.RESHARD)
    norm = Counter(["all_reduce"] if compiled(TEXTS[name]).program.loss else [])
    assert found == sent(step(TEXTS[name])) + norm


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_left_out_leads_nowhere(name: str) -> None:
    """Every box but an input has a source or reads something, and there is no circle."""
    for factored in (True, False):
        picture = drawn(TEXTS[name], factored)
        assert nx.is_directed_acyclic_graph(nx.DiGraph(list(picture.arrows)))
        into = picture.into()
        for box in picture.boxes.values():
            gathers = box.op == "all_gather"
            assert into[box.id] or box.kind is BoxKind.INPUT or box.reads or gathers, box


@pytest.mark.parametrize("name", ["fsdp", "held"])
def test_dot(name: str) -> None:
    same_as_fixture(f"{name}.step.dot", dot_of(compiled(TEXTS[name])))


def test_32_layers_are_drawn_as_one_in_both_halves() -> None:
    """But for the first layer in the backward: nobody asks for the gradient of its input.

    Most gathers are in flight beside the ops of a layer next to theirs.
    """
    spec, found = load_spec_text(DEEP, str(LAYERS.with_name("case.shard")))
    assert spec is not None, found
    picture = picture_of(compile_spec(spec))
    repeats = {k: n for k, (_, n) in picture.repeats.items()}
    assert repeats == {"forward.layers.0": 32, "backward.layers.1": 31}
    assert len(picture.boxes) < 30 and len(picture.arrows) < 40
    gathers = [box for box in picture.boxes.values() if box.op == "all_gather"]
    assert [(box.module, box.again) for box in gathers] == [
        ("forward.layers.0", False), ("backward.layers.1", True), ("backward.layers.0", True),
    ]  # fmt: skip
    assert gathers[0].flight == (
        "beside 4 ops", "starts after add, 2 layers before", "waited for before linear in up",
    )  # fmt: skip


def lines_of(text: str, module: str) -> str:
    """All that is written in the boxes of a module."""
    picture = drawn(text)
    boxes = [box for box in picture.boxes.values() if box.module.startswith(module)]
    return "\n".join(line for box in boxes for line in (box.title, *box.text))


def test_microbatches_have_frames_of_their_own() -> None:
    picture = drawn(ACCUMULATED)
    assert picture.repeats["forward, by microbatch"] == ("forward, by microbatch", 2)
    assert picture.repeats["backward, by microbatch"] == ("backward, by microbatch", 2)
    assert "all_reduce dp" in lines_of(ACCUMULATED, "behind all backwards")
    assert "all_reduce tp" in lines_of(ACCUMULATED, "backward, by microbatch")
    assert "sums over microbatches" in lines_of(ACCUMULATED, "behind all forwards")
    assert '"backward, by microbatch  ×2"' in dot_of(compiled(ACCUMULATED))


def test_the_update_shows_the_optimizer_its_norm_and_the_gathers() -> None:
    found = lines_of(HELD, "update")
    assert "adamw\non this device's parts" in found and "norm of all gradients" in found
    assert "all_gather shard\n4 values" in found and "new values of 12 parameters" in found


def test_what_is_computed_again_is_marked() -> None:
    again = [box for box in drawn(AGAIN).boxes.values() if box.again]
    assert {name for box in again for name in box.names} >= {"gelu"}
    assert "once more in the backward" in dot_of(compiled(AGAIN))
    assert not any(box.again for box in drawn(FSDP).boxes.values())


def test_a_phase_alone(tmp_path: Path) -> None:
    text = dot_of(compiled(FSDP), phases=[Phase.BACKWARD])
    frames = re.findall(r'subgraph "cluster_(\w+)"', text)
    assert frames == ["backward"] and "spec.shard, backward" in text
    spec = ROOT / "examples/megatron_mlp/mlp.shard"
    status, out, _ = shardlang("graph", spec, "--phase", "update", "--phase", "forward")
    assert status == 0 and re.findall(r'subgraph "cluster_(\w+)"', out) == ["forward", "update"]
    status, _, err = shardlang("graph", spec, "--phase", "update", "--stage", "traced")
    assert status == 2 and "--phase belongs to --stage step" in err


def test_a_model_that_is_not_trained_is_drawn_as_its_program() -> None:
    made = untrained()
    assert whole_step(made) is None
    assert picture_of(made) == picture_of(made, Drawn.REWRITTEN)


def untrained() -> Compiled:
    """A block whose parameters are all frozen."""
    from shardlang.compiler.driver import module_source
    from tests.plan.models import block

    spec, found = load_spec_text(TP, str(HERE / "spec.shard"))
    assert spec is not None, found
    return compile_spec(spec, module_source(block().requires_grad_(False)))


@pytest.mark.parametrize(("module", "other", "name"), [
    ("h.3.mlp.up", "h.3.mlp.down", " in mlp.down"), ("h.3.mlp", "h.4.mlp", " in mlp, 1 layer on"),
    ("h.3.up", "h.1", ", 2 layers before"), ("h.3", "g.3.up", " in g.3.up"),
    ("up", "down", " in down"), ("up", "", ""),
])  # fmt: skip
def test_the_name_of_a_module_as_seen_from_another(module: str, other: str, name: str) -> None:
    assert seen_from(module, other) == name


def test_readers_of_one_box_are_joined_where_that_makes_no_circle() -> None:
    """`a` is read by b, c, d of one module; d reads another module's e, which reads b."""
    made = Picture()
    for name in "abced":
        made.add(Box(name, BoxKind.OP, "n" if name == "e" else "m", (name,), name, True, (name,)))
    made.boxes["a"] = Box("a", BoxKind.INPUT, "", ("a",))
    for ends in ("ab", "ac", "ad", "be", "ed"):
        made.connect(Arrow(*ends))
    joined = join_siblings(made)
    assert {box.id: box.names for box in joined.boxes.values() if box.names} == {
        "b": ("b", "c"), "e": ("e",), "d": ("d",),
    }  # fmt: skip
