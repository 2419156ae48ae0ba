"""An op that fails in a run is named, with its module and line of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.runtime.at_op import place_of
from shardlang.runtime.reports import explain


class Looking(nn.Module):
    """Looks up rows whose numbers it computes, so that none can be refused before the run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b`."""
        z = self.head(self.embed(x.round().long()))
        return {"loss": z.square().mean(), "z": z}


@pytest.mark.parametrize("count", [1, 2])
def test_an_op_that_fails_is_named_at_its_line(count: int, tmp_path: Path) -> None:
    path = tmp_path / "looking.shard"
    many = f"accumulate {count}\n" if count > 1 else ""
    path.write_text(f"mesh {{ a = 1 }}\ninput x : f32[4] [_]\noptimizer sgd(lr = 0.1)\n{many}")
    program = shardlang.compile(path, model=Looking)
    program.load()
    program.step({"x": torch.arange(4.0)})
    with pytest.raises(IndexError) as caught:
        program.step({"x": torch.tensor([0.0, 5.0, 1.0, 6.0])})
    line = Looking.forward.__code__.co_firstlineno + 2
    place = f"at embedding in embed (test_at_op.py:{line})"
    assert place_of(caught.value) == place
    said = explain(1, caught.value).message
    assert said.startswith("IndexError: index out of range") and said.endswith(place)
