"""Layouts from the structure of plain models: packed projections, chains, small dims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardlang.capture import CallableSource, CaptureError
from shardlang.compiler.driver import compile_spec
from shardlang.init import Written, write_spec
from shardlang.init.axes import Roles
from shardlang.init.inputs import Sizes, inputs_of
from shardlang.ir.mesh import Mesh
from shardlang.proof.prove import verify_compiled
from shardlang.spec import load_spec_text

HERE = Path(__file__).parent


def written(function: str, *inputs: str, mesh: str = "dp=2,tp=2") -> Written:
    """The spec of one of the models beside this file."""
    return write_spec(f"{HERE / 'models.py'}:{function}", mesh, folder=HERE, inputs=inputs)


def statements(spec: Written) -> list[str]:
    """Its statements about parameters, with single spaces."""
    lines = [" ".join(line.split()) for line in spec.text.splitlines()]
    return [line for line in lines if line.startswith("param")]


PACKED = {
    "chunked": "tp(3)",
    "sliced": "tp(3)",
    "viewed": "tp(3)",
    "heads_first": "tp",
}


@pytest.mark.parametrize("function", PACKED)
def test_packed_projections_are_split_in_blocks(function: str) -> None:
    spec = written(function, "x:f32[4, 5, 24]")
    entry = PACKED[function]
    assert sorted(statements(spec)) == [
        'param "out.weight" [_, tp]',
        f'param "qkv.bias" [{entry}]',
        f'param "qkv.weight" [{entry}, _]',
    ]
    assert spec.percent == 100.0


def test_a_written_spec_of_packed_blocks_verifies() -> None:
    spec, _ = load_spec_text(written("sliced", "x:f32[4, 5, 24]").text, str(HERE / "x.shard"))
    assert spec is not None
    assert verify_compiled(compile_spec(spec)).ok


def test_products_in_a_row_take_turns() -> None:
    """The first is split by its rows, the second by its columns, and so on."""
    spec = written("stack", "x:f32[4, 10]")
    assert statements(spec) == [
        'param "layers.{0,2}.weight" [tp, _]',
        'param "layers.{0,2}.bias" [tp]',
        'param "layers.{1,3}.weight" [_, tp]',
    ]


def test_nothing_is_split_that_is_smaller_than_the_axis() -> None:
    spec = written("narrow", "x:f32[4, 40]", "ids:i64[4] below 40", mesh="dp=1,tp=4")
    assert statements(spec) == [
        'param "up.weight" [_, tp]', 'param "down.weight" [tp, _]', 'param "down.bias" [tp]'
    ]  # fmt: skip


def test_inputs_come_from_the_models_own_batches() -> None:
    spec = written("with_data")
    lines = [" ".join(line.split()) for line in spec.text.splitlines()]
    assert "input x : f32[batch, 40] [dp, _]" in lines
    assert "input ids : i64[batch] below 8 [dp]" in lines
    assert "let batch = 8" in lines


class Fed(CallableSource):
    """A linear layer with batches of its own."""

    def __init__(self, *own: object) -> None:
        super().__init__(lambda: nn.Linear(3, 2))
        self.own = own

    def batches(self, seed: int) -> Iterator[Any]:
        return iter(self.own)


def test_of_a_batch_the_tensors_alone_are_inputs() -> None:
    x, roles = torch.ones(6, 3), Roles(Mesh(()))
    found = inputs_of(Fed({"input": x, "scale": 2}), None, roles, Sizes(), ())
    assert [(spec.name, spec.shape) for spec in found] == [("input", (6, 3))]
    with pytest.raises(CaptureError, match="a batch is a dict, and the first one is a `Tensor`"):
        inputs_of(Fed(x), None, roles, Sizes(), ())
