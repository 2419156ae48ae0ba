"""Models that are written by hand: their experts are found, and no written spec is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.driver import compile_spec
from shardlang.init import Written, start, write_spec
from shardlang.init.layouts import Entry, Layouts
from shardlang.proof.prove import verify_compiled
from shardlang.spec import load_spec_text

HERE = Path(__file__).parent
STACKED = {"w1": "[ep, _, _]", "w2": "[ep, _, _]"}
EXPERTS = {
    "Stacked": {**STACKED, "b1": "[ep, _]"},
    "Batched": STACKED,
    "Picked": STACKED,
    "Indexed": {"w1": "[_, _, ep]", "w2": "[_, ep, _]"},
    "Looped": {
        "parts.*.up.weight": "[ep, _]", "parts.*.up.bias": "[ep]", "parts.*.down.weight": "[_, ep]"
    },
    "Listed": {"w1.*": "[_, ep]", "w2.*": "[ep, _]"},
    "Heads": {},
}  # fmt: skip


def written(kind: str, mesh: str) -> Written:
    """The spec of one of the models beside this file."""
    model = f"{HERE / 'by_hand.py'}:build"
    return write_spec(model, mesh, folder=HERE, arguments=[f"kind={kind}"])


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_get_their_axis(kind: str) -> None:
    spec = written(kind, "dp=2,ep=2")
    lines = {}
    for line in spec.text.splitlines():
        if line.startswith("param"):
            _, pattern, layout = line.split('"')
            names = ["w1", "w2"] if pattern == "{w1,w2}" else [pattern]
            lines |= dict.fromkeys(names, " ".join(layout.split()))
    assert lines == EXPERTS[kind]


@pytest.mark.parametrize("kind", ["Stacked", "Looped", "Picked"])
def test_experts_over_both_axes_verify(kind: str) -> None:
    spec = written(kind, "ep=2,tp=2")
    assert "[ep, _, tp]" in spec.text or "[ep*tp, _]" in spec.text
    assert _verifies(spec)


@pytest.mark.parametrize("kind", ["Adapter", "Vera", "Tied", "Recurrent"])
@pytest.mark.parametrize("mesh", ["dp=2,tp=2", "tp=4"])
def test_shared_square_matrices_are_split_once(kind: str, mesh: str) -> None:
    """One axis splits one dim of a parameter, whatever else is split with it."""
    spec = written(kind, mesh)
    assert spec.percent is not None and spec.percent > 85
    assert mesh == "tp=4" or _verifies(spec)


def test_a_buffer_whose_update_needs_all_of_it_stays_whole() -> None:
    spec = written("Balanced", "dp=2,ep=2")
    assert "Not split, since that is refused (the new value of buffer `bias`" in spec.text
    assert '"w" [ep, _, _]' in " ".join(spec.text.split())
    assert _verifies(spec)


def _verifies(written: Written) -> bool:
    spec, _ = load_spec_text(written.text, str(HERE / "written.shard"))
    assert spec is not None
    return bool(verify_compiled(compile_spec(spec)).ok)


def test_what_the_compiler_refuses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that is refused costs the parameters at fault, and the spec says which."""
    plain = start.lay_out

    def greedy(*given: object) -> Layouts:
        made: Layouts = plain(*given)  # type: ignore[arg-type]
        made.entries["layers.1.weight"] = {0: Entry(("tp",)), 1: Entry(("tp",))}
        return made

    monkeypatch.setattr(start, "lay_out", greedy)
    spec = written("Vera", "dp=2,tp=2")
    assert "layers.1.weight" in spec.whole
    assert "Not split, since that is refused (axis `tp` shards two dims of" in spec.text
    assert '"layers.{0,2}.weight" [' in spec.text
    assert _verifies(spec)
