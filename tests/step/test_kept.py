"""What a forward keeps is all that the backward from any of its results reads, on every device."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.ir.program import differentiable
from shardlang.passes.step.write_step import write_step
from shardlang.runtime.step_executor import saved_by
from shardlang.vjp.at_device import written_for


class Recurrent(nn.Module):
    """A layer whose ops depend on how many rows a device has: for one row there are fewer."""

    def __init__(self, kind: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.inner = kind(3, 4, num_layers=layers, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, object]:
        hidden, state = self.inner(x)
        return {"loss": hidden.square().mean(), "state": state}


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize(("kind", "layers"), [(nn.LSTM, 1), (nn.LSTM, 2), (nn.GRU, 1)])
def test_a_backward_from_some_results_reads_no_more(
    tmp_path: Path, kind: type[nn.RNNBase], layers: int, rows: int
) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(f"mesh {{ dp = 2 }}\ninput x : f64[{rows}, 2, 3] [dp, ...]\n")
    made = shardlang.compile(path, model=lambda: Recurrent(kind, layers).double())
    program = made.compiled.program
    trained = frozenset(leaf.name for leaf in program.leaves if leaf.trainable)
    ends = differentiable(program)
    assert len(ends) > 1
    some = [one for n in range(1, len(ends)) for one in combinations(ends, n)]
    for place in range(2):
        kept = _kept(program, trained, ends, place)
        for given in some:
            assert _kept(program, trained, given, place) <= kept, (given, place)


def _kept(program: object, trained: frozenset[str], given: object, place: int) -> set[str]:
    step = write_step(program, trained, given)  # type: ignore[arg-type]
    return set(saved_by(written_for(step, {"dp": place}, torch.device("cpu"))))
