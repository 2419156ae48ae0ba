"""A spec against a model's names."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.bind import Binding, ModelNames, bind
from shardlang.grammar.diagnostics import Diagnostic
from shardlang.spec import load_spec_text

HERE = Path(__file__).parent
BASE = (
    'mesh { dp = 2 tp = 4 big = 16 } model "m.py:f" store "**" over dp '
    "input x : f32[8, 16] [dp*tp, big]\n"
)
NAMES = ModelNames(
    params={
        "layers.0.weight": (32, 16),
        "layers.1.weight": (32, 16),
        "up.weight": (64, 16),
        "norm.bias": (9,),
        "scale": (),
        "frozen": (8,),
    },
    buffers={"norm.mean": (9,)},
    inputs={"x": (8, 16)},
    modules=("", "layers.0", "layers.1", "norm", "head", "split"),
    outputs={"loss": (), "logits": (8, 64)},
    values={
        ("layers.0", "out", ""): (8, 32),
        ("layers.1", "out", ""): (8, 32),
        ("layers.0", "in", "hidden"): (8, 16),
        ("layers.0", "in", "mask"): (8,),
        ("layers.1", "in", "hidden"): (8, 16),
        ("layers.1", "in", "mask"): (8,),
        ("split", "out", "0"): (8, 8),
        ("split", "out", "1"): (8, 8),
        ("head", "out", ""): (8,),
        ("norm", "out", "y"): (8, 16),
    },
    aliases={"tied.weight": "up.weight"},
)


def cases(path: Path) -> list[tuple[str, str]]:
    _, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    parts = (case.rpartition("\n=> ") for case in body.rstrip("\n").split("\n----\n"))
    return [(text, wanted) for text, _, wanted in parts]


def both(text: str) -> tuple[Binding | None, list[Diagnostic]]:
    spec, findings = load_spec_text(BASE + text, "spec.shard")
    if spec is None:
        return None, findings
    binding, more = bind(spec, NAMES)
    return binding, findings + more


def bound(text: str) -> Binding:
    binding, findings = both(text)
    assert binding is not None, findings
    return binding


@pytest.mark.parametrize(("text", "wanted"), cases(HERE / "refused.txt"))
def test_refused(text: str, wanted: str) -> None:
    binding, findings = both(text)
    assert (binding is None) == any(finding.is_error for finding in findings)
    shown = [f"{f.code}:{f.span.line}:{f.span.column}" for f in findings]
    assert " ".join(shown) == wanted
    for finding in findings:
        assert finding.help or finding.severity == "note"
        assert not finding.message.endswith(".")


def test_layouts_are_placed() -> None:
    binding = bound("""
    param "layers.*.weight" [tp(4), ...]
    param "layers.1.weight" [_, dp*tp]
    param "tied.weight" [tp(16), ?]
    param "norm.bias" [tp]
    buffer "**" [dp]
    output logits [dp, ...]
    loss loss
    """)
    assert {name: str(bound.layout) for name, bound in binding.params.items()} == {
        "layers.0.weight": "[32@tp(4), 16]",
        "layers.1.weight": "[32, 16@dp*tp]",
        "up.weight": "[64@tp(16), 16]",
        "norm.bias": "[9@tp]",
    }
    assert binding.params["layers.0.weight"].open == {1}
    assert str(binding.buffers["norm.mean"].layout) == "[9@dp]"
    assert str(binding.inputs["x"].layout) == "[8@dp*tp, 16@big]"
    assert str(binding.outputs["logits"].layout) == "[8@dp, 64]"
    assert binding.outputs["logits"].open == {1}
    assert binding.loss == "loss"


def test_values_choose_the_only_tensor_and_the_later_statement() -> None:
    binding = bound("""
    value "layers.*" [dp, _] +tp
    value "layers.1".out [_, ?]
    value "layers.*".in.mask [dp]
    value "norm" [dp, _]
    """)
    layouts = {key: str(bound.layout) for key, bound in binding.values.items()}
    assert layouts == {
        ("layers.0", "out", ""): "[8@dp, 32] +tp",
        ("layers.1", "out", ""): "[8, 32]",
        ("layers.0", "in", "mask"): "[8@dp]",
        ("layers.1", "in", "mask"): "[8@dp]",
        ("norm", "out", "y"): "[8@dp, 16]",
    }
    assert binding.values["layers.1", "out", ""].open == {1}


def test_storage_skips_scalars() -> None:
    binding = bound("""
    store "layers.**" over dp*tp regather
    store "up.*" over dp
    """)
    axes = {name: "*".join(map(str, found)) for name, found in binding.storage.items()}
    assert axes == {
        "layers.0.weight": "dp*tp", "layers.1.weight": "dp*tp", "up.weight": "dp",
        "norm.bias": "dp", "frozen": "dp",
    }  # fmt: skip
    regather = {name for name, decl in binding.stores.items() if decl.regather}
    assert regather == {"layers.0.weight", "layers.1.weight"}


def test_one_fault_on_many_tensors_is_one_finding() -> None:
    _, findings = both('param "**" [tp, _]')
    (fault, scalar) = sorted(findings, key=lambda finding: finding.code)
    assert fault.code == "SH0302"
    assert fault.notes == ("the same is true of 1 more tensor, such as `frozen`",)
    assert scalar.code == "SH0309"


def test_the_nearest_names_are_named() -> None:
    _, findings = both('param "**.weigt" [...]')
    assert "`layers.0.weight`" in (findings[0].help or "")
