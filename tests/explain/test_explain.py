"""Explanations: chains of reasons, the ways not taken, names."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.explain import Explanation, UnknownName, explain, render
from tests.commands import document, shardlang
from tests.plan.plans import FSDP, HERE, SP, STACK, TP, compiled


def one(text: str, name: str) -> Explanation:
    """The only explanation of a name."""
    (found,) = explain(compiled(text), name)
    return found


def titles(found: Explanation) -> list[str]:
    """What the tensor does along each axis."""
    return [story.title for story in found.stories]


def test_a_stated_parameter() -> None:
    found = one(TP, "up.weight")
    assert found.kind == "param"
    assert titles(found) == ["whole over dp", "tp splits dim 0"]
    (link,) = found.stories[1].links
    assert link.text == "`up.weight` is stated so"
    assert link.place.endswith("spec.shard:5")
    assert found.collectives[0].startswith("backward all_reduce over dp")


BOTH = TP.replace('"up.{weight,bias}" [tp, ...]', '"up.{weight,bias}" [dp*tp, ...]')


def test_a_stated_axis_that_is_one_of_storage_too_is_stated() -> None:
    stories = one(BOTH + 'store "**" over dp\n', "up.weight").stories
    assert [story.title for story in stories] == ["dp splits dim 0", "tp splits dim 0"]
    for story in stories:
        assert [link.text for link in story.links] == ["`up.weight` is stated so"]


def test_a_value_and_where_its_split_comes_from() -> None:
    found = one(TP, "down.out")
    assert found.facts[0] == "f32[4@dp, 12, 8] +tp, local [2, 12, 8]"
    assert titles(found) == ["dp splits dim 0", "a partial sum over tp"]
    batch, partial = found.stories
    assert [link.text for link in batch.links] == [
        "`linear` in `down` carries it on from what it reads",
        "`gelu` carries it on from what it reads",
        "`linear` in `up` carries it on from what it reads",
        "`x` is stated so",
    ]
    assert partial.links[0].text == (
        "`linear` in `down` is split over tp as its parameter `down.weight` is"
    )
    assert partial.links[0].source.startswith("models.py:")


def test_the_ways_not_taken() -> None:
    story = one(TP, "down.out").stories[1]
    assert story.choice == "`linear` in `down`"
    (chosen,) = [way for way in story.alternatives if way.chosen]
    assert chosen.text.endswith("leaving a partial sum")
    # one all-reduce of b s d, against the same with the parts of gelu's result gathered
    assert chosen.bytes == 2 * (2 * 12 * 8) * 4 * 3 // 4
    whole = next(way for way in story.alternatives if way.text.startswith("not split"))
    assert whole.bytes > chosen.bytes
    ordered = [way.bytes for way in story.alternatives]
    assert ordered == sorted(ordered)


def test_a_layout_of_an_operand_that_gives_way_to_a_parameter() -> None:
    """The input lies along the sequence; the product takes the rows of its weight instead."""
    batch, rows = one(SP, "up.out").stories
    assert not batch.lost
    (lost,) = rows.lost
    assert lost.text == "tp on dim 1 of what `x` gives"
    assert lost.origin is not None and lost.origin.text == "`x` is stated so"
    assert lost.origin.place.endswith("spec.shard:4")


def test_a_layout_that_a_reader_asks_for_in_vain() -> None:
    """The sum with the input lies along the sequence; what the product gives is a partial sum."""
    found = one(SP, "down.out")
    (lost,) = found.stories[1].lost
    assert lost.text == "tp on dim 1, as its reader `add` asks"
    assert lost.source.startswith("models.py:")
    assert lost.origin is not None and lost.origin.place.endswith("spec.shard:4")
    assert "  not taken: tp on dim 1, as its reader `add` asks (models.py:" in render([found])


def test_where_nothing_pulls_another_way_nothing_is_lost() -> None:
    lost = [story.lost for name in ("up.out", "down.out") for story in one(TP, name).stories]
    assert not any(lost)


def test_storage_asks_for_nothing() -> None:
    """A parameter that a data axis splits is gathered before it is read."""
    assert not any(story.lost for story in one(FSDP, "layers.1.down.out").stories)


def test_a_stored_parameter() -> None:
    found = one(FSDP, "layers.1.down.weight")
    assert titles(found)[1] == "shard splits dim 1"
    (link,) = found.stories[1].links
    assert link.text.startswith("`layers.1.down.weight` is stored over shard")
    assert link.place.endswith(":5")


def test_a_collective() -> None:
    found = one(SP, "reduce_scatter")
    assert found.kind == "collective"
    assert found.subject == "reduce_scatter: down.out"
    assert found.facts[-1] == "from f32[4@dp, 12, 8] +tp to f32[4@dp, 12@tp, 8]"
    assert titles(found) == ["`linear` in `down` gives it", "`add` reads it", "the reshards"]
    direct, around = found.stories[2].alternatives
    assert (direct.text, direct.chosen) == ("reduce_scatter", True)
    assert direct.bytes < around.bytes


def test_a_module_is_what_it_returns_and_its_collectives() -> None:
    kinds = [found.kind for found in explain(compiled(STACK), "layers.1.down")]
    assert kinds == ["value", "collective"]


def test_long_chains_are_shortened() -> None:
    text = STACK.replace('stack"()', 'stack"(layers = 8)')
    links = one(text, "layers.7.out").stories[0].links
    assert len(links) == 7
    assert links[3].text.startswith("… ")
    assert links[-1].text == "`x` is stated so"


def test_unknown_names() -> None:
    with pytest.raises(UnknownName) as failure:
        explain(compiled(TP), "up.wight")
    assert failure.value.near[0] == "up.weight"


@pytest.mark.parametrize(
    "name", ["up.weight", "up.out", "x", "output", "all_gather", "down", "add"]
)
def test_everything_fits_80_columns(name: str) -> None:
    text = render(explain(compiled(SP), name))
    assert max(map(len, text.split("\n"))) <= 80


def test_command(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text((HERE / "models.py").read_text())
    spec = tmp_path / "tp.shard"
    spec.write_text(TP)
    status, out, _ = shardlang("explain", spec, "down.weight")
    assert status == 0
    assert 'param "down.weight" [_, tp]' in out
    (found,) = document("explain", spec, "down.weight")["explanations"]
    assert [axis["axis"] for axis in found["axes"]] == ["dp", "tp"]
    status, _, err = shardlang("explain", spec, "down.wait")
    assert status == 2
    assert "did you mean `down.weight`" in err
    status, _, err = shardlang("explain", spec)
    assert status == 2
    assert "name what to explain" in err


STAGED = """
mesh { pp = 2  tp = 2 }
model "models.py:stack"(layers = 4)
input x : f32[8, 12, 8] [_, _, _]
param "layers.*.up.{weight,bias}" [tp, ...]
param "layers.*.down.weight" [_, tp]
"""
PIPELINE = 'pipeline pp { split "layers"  microbatches 4 }\n'


def test_what_lies_in_a_stage_says_so() -> None:
    text = STAGED + PIPELINE
    weight = one(text, "layers.2.up.weight")
    assert weight.facts[1] == "held in stage 1 (rank 1 of pp)"
    assert titles(weight) == ["tp splits dim 0"]
    made = one(text, "layers.1.out")
    assert "made in stage 0 (rank 0 of pp)" in made.facts
    assert [line.partition(":")[0].partition(",")[0] for line in made.collectives] == [
        "forward transfer over pp in `layers.1`",
        "backward transfer over pp in `layers.2.up`",
    ]
    assert "read in stage 0 (rank 0 of pp)" in one(text, "x").facts


@pytest.mark.parametrize("more", [PIPELINE, "accumulate 4\n"])
def test_collectives_of_microbatches_are_said_as_planned(more: str) -> None:
    stated = compiled(STAGED + more)
    found = [x for x in explain(stated, "layers.3") if x.kind == "collective"]
    assert [x.facts[0].partition(", ")[0] for x in found] == [
        "forward all_reduce over tp in `layers.3.down`",
        "backward all_reduce over tp in `layers.3.up`",
    ]
    for one in found:
        assert one.facts[0].endswith("; for each of 4 microbatches")
        assert explain(stated, one.subject.partition(":")[0]) == [one]


def test_a_parameter_of_which_storage_splits_the_state_alone() -> None:
    """The value lies whole: what is split is said to be the state's, and by which statement."""
    text = FSDP.replace('store "', 'store optimizer "')
    found, stored = one(text, "layers.1.down.weight"), one(FSDP, "layers.1.down.weight")
    assert found.facts[0] != stored.facts[0] and "@shard" not in found.facts[0]
    assert found.facts[1] == f"its optimizer state: {stored.facts[0]}"
    assert titles(found)[1] == "shard splits dim 1 of its optimizer state"
    assert found.stories[1].links[0].place.endswith(":5")


def test_a_stored_parameter_bears_its_name_where_an_op_is_split_as_it_is() -> None:
    text = TP + 'store "**" over dp\n'
    texts = [link.text for story in one(text, "up.out").stories for link in story.links]
    assert any("as its parameter `up." in text for text in texts), texts
