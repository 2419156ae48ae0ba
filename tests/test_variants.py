"""A spec compiled again for calls of another size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.api import Program
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.compiler.variants import Programs, compiled_for
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.runtime.calls import Call, Given
from shardlang.runtime.errors import RunError
from shardlang.spec import load_spec
from tests.commands import ROOT


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Batch 7 over dp, tensor parallel, stored over dp."""
    spec, findings = load_spec(ROOT / "examples" / "uneven" / "stored.shard")
    assert spec is not None, findings
    return compile_spec(spec)


def layouts(compiled: Compiled) -> dict[str, Layout]:
    return {leaf.name: leaf.layout for leaf in compiled.program.leaves if leaf.kind == "param"}


def call(compiled: Compiled, **shapes: tuple[int, ...]) -> Call:
    """A call with integer inputs."""
    given = (Given(name, torch.int64, shape) for name, shape in sorted(shapes.items()))
    return replace(Programs(compiled).declared, inputs=tuple(given))


@pytest.mark.parametrize("rows", [3, 1])
def test_parameters_stay_where_they_are(compiled: Compiled, rows: int) -> None:
    other = compiled_for(compiled, call(compiled, input_ids=(rows, 11), labels=(rows, 11)))
    assert layouts(other) == layouts(compiled)
    (ids,) = [leaf for leaf in other.program.leaves if leaf.name == "input_ids"]
    assert str(ids.layout) == ("[3@dp, 11]" if rows == 3 else "[1, 11]")
    assert Program(other).verify().ok


def test_batches_that_do_not_fit_are_refused(compiled: Compiled) -> None:
    programs = Programs(compiled)
    with pytest.raises(RunError, match="the batch lacks the input `labels`") as caught:
        programs.check(call(compiled, input_ids=(7, 11)), strict=True)
    assert caught.value.code == "SH0605"
    uneven = call(compiled, input_ids=(7, 12), labels=(7, 11))
    with pytest.raises(
        RunError, match=r"cannot be compiled for .*input_ids : i64\[7, 12\]"
    ) as caught:
        programs.make(uneven, {})
    assert caught.value.code == "SH0605"


class Continued(nn.Module):
    """Rows that go on after earlier ones, all of which a mask speaks of."""

    def forward(self, x: Tensor, mask: Tensor, past: dict[str, Tensor] | None = None) -> Tensor:
        whole = x if past is None else torch.cat([past["rows"], x], 1)
        return (whole @ mask.mT).sum()


def test_inputs_that_are_cut_without_the_rest_are_told_of_it(tmp_path: Path) -> None:
    """`shard_inputs` of some inputs makes a program for these; what is left out is named."""
    lines = ("x : f32[4, 1] [dp, _]", "mask : f32[4, 3] [dp, _]", '"past.rows" : f32[4, 2] [dp, _]')
    path = tmp_path / "spec.shard"
    path.write_text("mesh { dp = 1 }\n" + "".join(f"input {line}\n" for line in lines))
    module = shardlang.compile(path, model=Continued).load()
    x, mask = torch.ones(4, 1), torch.ones(4, 3)
    module(**module.shard_inputs(x=x, mask=mask, past={"rows": torch.ones(4, 2)}))
    with pytest.raises(RunError, match=r"x : f32\[4, 1\] and without `past`: ") as caught:
        module.shard_inputs(x=x, mask=mask)
    assert caught.value.code == "SH0605"
    assert "pass all inputs of the call through one `shard_inputs`" in caught.value.help


def test_parameters_that_would_lie_elsewhere_are_kept_in_their_place(compiled: Compiled) -> None:
    """As if the norm had come out split over tp at the first size."""
    tp, name = compiled.spec.mesh["tp"], "model.norm.weight"
    dp = compiled.spec.mesh["dp"]
    moved = Layout((DimLayout.shard(30, (tp, dp)),))
    leaves = tuple(
        replace(leaf, layout=moved) if leaf.name == name else leaf
        for leaf in compiled.program.leaves
    )
    first = replace(compiled, program=replace(compiled.program, leaves=leaves))
    other = compiled_for(first, call(first, input_ids=(3, 11), labels=(3, 11)))
    assert layouts(other) == layouts(first)
    assert layouts(other)[name] != layouts(compiled)[name]
    assert Program(other).verify().ok
