"""Tree to `Spec`: what resolves to what, and what is refused where."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.grammar.diagnostics import Diagnostic
from shardlang.grammar.patterns import compile_pattern
from shardlang.ir.mesh import Axis
from shardlang.ir.step_options import NO_OPTIONS, StepOptions
from shardlang.spec import Spec, load_spec, load_spec_text
from shardlang.spec.types import Axes, ExpectCount, LayoutExpr, Open, Rest, SelectExpr, Whole

HERE = Path(__file__).parent
SPECS = sorted((HERE / "specs").glob("*.shard"))
BASE = 'mesh { dp = 2 tp = 4 over nvlink } model "m.py:build" input x : f32[8, 16] [dp, tp]\n'


def cases(path: Path) -> list[tuple[str, str]]:
    _, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    parts = (case.rpartition("\n=> ") for case in body.rstrip("\n").split("\n----\n"))
    return [(text, wanted) for text, _, wanted in parts]


def places(findings: list[Diagnostic]) -> str:
    return " ".join(f"{f.code}:{f.span.line}:{f.span.column}" for f in findings)


def resolved(text: str, **sets: str) -> Spec:
    spec, findings = load_spec_text(text, "spec.shard", sets)
    assert spec is not None, findings
    return spec


@pytest.mark.parametrize(("text", "wanted"), cases(HERE / "refused.txt"))
def test_refused(text: str, wanted: str) -> None:
    spec, findings = load_spec_text(BASE + text, "spec.shard")
    assert (spec is None) == any(finding.is_error for finding in findings)
    assert places(findings) == wanted
    for finding in findings:
        assert finding.help or finding.severity == "note"
        assert not finding.message.endswith(".")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_as_users_write_them(path: Path) -> None:
    spec, findings = load_spec(path)
    assert spec is not None
    assert [finding for finding in findings if finding.severity != "note"] == []


def test_names_are_replaced_by_axes_and_values() -> None:
    text = """
    let n = 3 let m = n
    mesh { cp = 2 as data dp = 2 tp = 4 over nvlink }
    dims { batch = dp*cp heads = tp whole = _ }
    model "sub/m.py:build"(width = m, rate = 0.5, deep = true, sizes = [n, 1MiB], name = "x")
    input "a.{b,c}" : i64[8, n] below m [batch, _]
    param "q" [heads(n), whole, ?, ...]
    value "up".in.0.h [_, _] +tp
    store "**" over dp regather
    loss total
    optimizer adamw(lr = 3e-4, betas = [0.9, 0.95], clip = 1)
    random fast
    schedule { prefetch n prefetch 512MiB }
    expect { bytes forward all_reduce over heads in "up" <= 1KiB }
    """
    spec = resolved(text)
    assert spec.mesh.axes[2] == Axis("tp", 4, "nvlink")
    assert spec.data_axes == {"cp", "dp"}
    assert spec.model.path == (Path.cwd() / "sub/m.py").resolve()
    assert spec.model.function == "build"
    assert spec.model.kwargs == {
        "width": 3, "rate": 0.5, "deep": True, "sizes": (3, 2**20), "name": "x",
    }  # fmt: skip
    (given,) = spec.inputs
    assert (given.name, given.dtype, given.shape, given.below) == (None, "i64", (8, 3), 3)
    assert given.layout == LayoutExpr((Axes(("dp", "cp")), Whole()))
    assert spec.params[0].layout == LayoutExpr((Axes(("tp",), (3,)), Whole(), Open(), Rest()))
    (value,) = spec.values
    assert (value.side, value.path, value.layout.partial) == ("in", ("0", "h"), ("tp",))
    (store,) = spec.stores
    assert (store.axes, store.regather) == (("dp",), True)
    assert spec.loss is not None and spec.loss.pattern.literal == "total"
    assert spec.optimizer is not None
    assert spec.optimizer.kwargs == {"lr": 3e-4, "betas": (0.9, 0.95), "clip": 1}
    assert (spec.random, resolved(BASE).random) == ("fast", "exact")
    assert (spec.step, resolved(BASE).step) == (StepOptions(prefetch=2**29), NO_OPTIONS)
    select = SelectExpr("all_reduce", "forward", ("tp",), compile_pattern("up"))
    assert spec.expects == (ExpectCount("bytes", select, "<=", 1024),)


def test_an_axis_of_a_first_dim_is_a_data_axis() -> None:
    assert resolved(BASE).data_axes == {"dp"}
    assert resolved(BASE + "input y : f32[4, 4] [tp, dp]").data_axes == {"dp", "tp"}
    assert resolved(BASE + "input y : f32[4, 4] [_, tp]").data_axes == {"dp"}
    assert resolved(BASE.replace("dp = 2", "dp = 2 as model")).data_axes == set()


def test_the_later_input_wins() -> None:
    spec = resolved(BASE + "input x : i64[4] [tp]")
    assert [(decl.name, decl.dtype) for decl in spec.inputs] == [("x", "i64")]
    assert spec.data_axes == {"tp"}


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.shard").write_text(text, encoding="utf-8")
    return folder / "main.shard"


def test_use_takes_later_facts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    base = """
    let b = 8 mesh { dp = 2 } dims { batch = dp } model "m.py:f" input x : f32[b, 4] [batch, _]
    """
    write(tmp_path / "sub", base=base)
    main = 'use "sub/base.shard" let b = 16 mesh { x = 2 y = 2 } dims { batch = x*y }'
    spec, findings = load_spec(write(tmp_path, main=main))
    assert spec is not None, findings
    assert {finding.code for finding in findings} == {"SH0223"}
    assert [axis.name for axis in spec.mesh.axes] == ["x", "y"]
    assert spec.inputs[0].shape == (16, 4)
    assert spec.data_axes == {"x", "y"}
    assert spec.model.path == tmp_path / "sub" / "m.py"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"main": 'use "main.shard"'}, "SH0217 main.shard:1:5"),
        ({"main": 'use "a.shard"', "a": 'use "main.shard"'}, "SH0217 a.shard:1:5"),
        ({"main": 'use "b.shard"'}, "SH0109 main.shard:1:5"),
        ({"main": 'use ""'}, "SH0109 main.shard:1:5"),
        ({"main": 'use "."'}, "SH0109 main.shard:1:5"),
        ({"main": 'use "a.shard"', "a": "\n  mesh"}, "SH0101 a.shard:2:7"),
        ({"main": 'use "a.shard"\nlet dp = 3', "a": BASE}, "SH0202 a.shard:1:8"),
    ],
)
def test_use_refused(files: dict[str, str], wanted: str, tmp_path: Path) -> None:
    spec, findings = load_spec(write(tmp_path, **files))
    assert spec is None
    errors = [finding for finding in findings if finding.is_error]
    shown = [f"{f.code} {Path(f.span.file).name}:{f.span.line}:{f.span.column}" for f in errors]
    assert wanted in shown


def test_a_file_may_be_used_twice(tmp_path: Path) -> None:
    files = {"a": "let b = 2", "main": 'use "a.shard" use "a.shard" ' + BASE.replace("8", "b")}
    spec, findings = load_spec(write(tmp_path, **files))
    assert spec is not None
    assert findings == []


def test_doubling_uses_end(tmp_path: Path) -> None:
    files = {f"f{i}": f'use "f{i + 1}.shard" use "f{i + 1}.shard"' for i in range(20)}
    spec, findings = load_spec(write(tmp_path, main='use "f0.shard"', f20="", **files))
    assert spec is None
    assert any("64 files" in finding.message for finding in findings)


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "main.shard").write_bytes(b"mesh \xff")
    assert places(load_spec(tmp_path / "main.shard")[1]) == "SH0109:1:1"
    assert places(load_spec(tmp_path)[1]) == "SH0109:1:1"
    assert places(load_spec(tmp_path / "none.shard")[1]) == "SH0109:1:1"


LETS = 'let n = 8 let f = 0.5 let s = "train" let on = true let size = 1KiB let m = n '
USING = (
    LETS
    + 'mesh { dp = 2 } model "m.py:f"(f = f, mode = s, on = on, c = size) '
    + "input x : f32[n, m] [dp, _]"
)


def test_set_changes_declared_lets() -> None:
    spec = resolved(USING, n="16", f="2", s="eval", on="false", size="2MiB")
    assert spec.inputs[0].shape == (16, 16)
    assert spec.model.kwargs == {"f": 2.0, "mode": "eval", "on": False, "c": 2 * 2**20}
    assert spec.set_values == {"n": 16, "f": 2.0, "s": "eval", "on": False, "size": 2 * 2**20}
    assert resolved(USING, m="3").inputs[0].shape == (8, 3)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("k", "1", "SH0218"), ("n", "1.5", "SH0219"), ("n", "x", "SH0219"), ("on", "1", "SH0219"),
     ("f", "true", "SH0219"), ("n", "1 mesh {}", "SH0219"), ("n", "", "SH0219"),
     ("s", "fast", "SH0224")],
)  # fmt: skip
def test_set_refused(name: str, value: str, code: str) -> None:
    spec, findings = load_spec_text(USING, "spec.shard", {name: value})
    assert spec is None
    assert [finding.code for finding in findings] == [code]


def test_long_chains_of_lets_resolve() -> None:
    lets = " ".join(f"let a{i} = a{i + 1}" for i in range(1500)) + " let a1500 = 8 "
    text = lets + BASE.replace("f32[8,", "f32[a0,")
    assert resolved(text).inputs[0].shape == (8, 16)


def test_a_list_that_is_no_pair_is_shown(tmp_path: Path) -> None:
    (tmp_path / "main.shard").write_text("mesh { dp = 2 }\noptimizer adamw(betas = [0.9])\n")
    found = [one for one in load_spec(tmp_path / "main.shard")[1] if one.code == "SH0221"]
    assert [one.message for one in found] == ["`betas` cannot be `[0.9]`"]
    assert found[0].help == "write two numbers from 0 up to but without 1, as in `[0.9, 0.95]`"


def test_a_group_without_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main.shard").write_text('mesh { dp = 2 }\ngroup "**" ()\n')
    found = [one for one in load_spec(tmp_path / "main.shard")[1] if one.code == "SH0221"]
    assert [one.message for one in found] == ["the group has no settings"]


def test_several_patterns_of_recompute_are_as_several_statements() -> None:
    apart = resolved(BASE + 'recompute "up"\nrecompute "mid.*"')
    assert resolved(BASE + 'recompute "up", "mid.*"').recomputes == apart.recomputes
    assert [one.pattern.text for one in apart.recomputes] == ["up", "mid.*"]
