"""A program is written without what surrounds the call for which it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import shardlang
from shardlang.api import Program
from shardlang.runtime.module import ShardedModule

X = torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6)


class Counting(nn.Module):
    """A buffer that is replaced, and one that is written; a norm, whose mean is saved."""

    seen: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.register_buffer("seen", torch.zeros(6))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b 6` to `b 5`."""
        self.seen = self.seen * 0.9 + x.detach().mean(0) * 0.1
        self.count += 1
        out: Tensor = self.down(torch.tanh(self.norm(self.up(x))))
        return out


def made(folder: Path, width: int) -> tuple[nn.Module, Program, ShardedModule]:
    """A model, its program on one device, and the module of that; no other test has its sizes."""
    torch.manual_seed(0)
    plain = Counting().double()
    plain.up, plain.norm = nn.Linear(6, width).double(), nn.LayerNorm(width).double()
    plain.down = nn.Linear(width, 5).double()
    spec = folder / "one.shard"
    spec.write_text("mesh { dp = 1 }\ninput x : f64[6, 6] [dp, _]\n")
    program = shardlang.compile(spec, model=plain)
    return plain, program, program.load("cpu")


def apart(module: nn.Module, plain: nn.Module) -> float:
    """The largest difference of a gradient, after a step without anything around it."""
    for model in (module, plain):
        model.zero_grad()
        model(x=X).square().sum().backward()
    pairs = zip(module.parameters(), plain.parameters(), strict=True)
    return max((a.grad - b.grad).abs().max().item() for a, b in pairs)  # type: ignore[operator]


def test_hooks_on_saved_tensors_are_not_written_down(tmp_path: Path) -> None:
    plain, program, module = made(tmp_path, 9)
    with saved_tensors_hooks(lambda t: t.to(torch.bfloat16), lambda t: t.double()):
        module(x=X)
    assert apart(module, plain) < 1e-12
    assert program.verify().ok


def test_the_first_call_may_be_checkpointed(tmp_path: Path) -> None:
    plain, _, module = made(tmp_path, 10)
    checkpoint(lambda x: module(x=x), X, use_reentrant=False).sum().backward()
    assert apart(module, plain) < 1e-12


def test_a_buffer_may_come_from_inference(tmp_path: Path) -> None:
    plain, _, module = made(tmp_path, 11)
    with torch.inference_mode():
        module(x=X)
    assert apart(module, plain) < 1e-12


def test_an_input_that_changed_is_what_pytorch_says(tmp_path: Path) -> None:
    """Not the buffer that the model itself has written."""
    _, _, module = made(tmp_path, 12)
    x = X.clone()
    loss = module(x=x).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
