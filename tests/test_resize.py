"""A spec compiled again for batches of another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from shardlang import resize
from shardlang.api import Program
from shardlang.driver import Compiled, compile_spec
from shardlang.ir.layout import DimLayout, Layout
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


@pytest.mark.parametrize("rows", [3, 1])
def test_parameters_stay_where_they_are(compiled: Compiled, rows: int) -> None:
    other = resize.compiled_for(compiled, ((rows, 11), (rows, 11)))
    assert layouts(other) == layouts(compiled)
    (ids,) = [leaf for leaf in other.program.leaves if leaf.name == "input_ids"]
    assert str(ids.layout) == ("[3@dp, 11]" if rows == 3 else "[1, 11]")
    assert Program(other).verify().ok


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"input_ids": torch.zeros(7, 11)}, "the batch lacks the input `labels`"),
        (
            {"input_ids": torch.zeros(7, 12), "labels": torch.zeros(7, 11)},
            "the model cannot be compiled for inputs of [(7, 12), (7, 11)]",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    compiled: Compiled, batch: dict[str, torch.Tensor], words: str
) -> None:
    unused: Any = None
    with pytest.raises(RunError) as caught:
        resize.Sizes(compiled, unused).module_for(batch)
    assert caught.value.code == "SH0605"
    assert words in str(caught.value)


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
    other = resize.compiled_for(first, ((3, 11), (3, 11)))
    assert layouts(other) == layouts(first)
    assert layouts(other)[name] != layouts(compiled)[name]
    assert Program(other).verify().ok
