"""The model's operations beside those that torch counts while the plain model runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import shardlang
from shardlang.compiler.driver import Compiled
from shardlang.cost.model_flops import model_flops
from shardlang.training.work import without_peak, work_of


class Perceptron(nn.Module):
    """The first product has one gradient, since nothing is asked of `x`; frozen ones have fewer."""

    def __init__(self, frozen: str = "") -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(6, 10), nn.Linear(10, 7), nn.Linear(7, 3)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not frozen or not name.startswith(frozen))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.mid(torch.tanh(self.up(x))))).square().mean()


class Attention(nn.Module):
    """Causal attention of 2 heads; the mask does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18, bias=False), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(0, (2, 4))
        q, k, v = (y.unflatten(-1, (2, 3)).transpose(1, 2) for y in self.qkv(rows).chunk(3, -1))
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(found.transpose(1, 2).flatten(-2)).square().mean()


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[:, None])).square().mean()


class Side(nn.Module):
    """One product that the loss does not come from, and one of a tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        made = self.a(x)
        return {"loss": (made @ made.t()).square().mean(), "side": self.b(x)}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "all": Perceptron,
    "first frozen": lambda: Perceptron("up"),
    "last frozen": lambda: Perceptron("down"),
    "middle frozen": lambda: Perceptron("mid"),
    "attention": Attention,
    "convolution": Convolution,
    "side": Side,
}
SPLITS = ("[dp, _]", "[_, dp]", "[_, _]")


def compiled(folder: Path, model: Callable[[], nn.Module], lays: str, more: str = "") -> Compiled:
    path = folder / "spec.shard"
    path.write_text(f"mesh {{ dp = 2 }}\ninput x : f32[8, 6] {lays}\n{more}\n")
    return shardlang.compile(path, model=model).compiled


@pytest.mark.parametrize("lays", SPLITS)
@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_the_plain_model(tmp_path: Path, name: str, lays: str) -> None:
    """On any layout, also where all devices compute the same."""
    model = MODELS[name]()
    with (
        FlopCounterMode(display=False) as counter,
        nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    ):
        made = model(torch.randn(8, 6))
        (made["loss"] if isinstance(made, dict) else made).backward()
    more = "" if name != "side" else "loss loss"
    found = model_flops(compiled(tmp_path, MODELS[name], lays, more).program)
    assert found == {torch.float32: counter.get_total_flops()}


def test_what_is_computed_again_does_not_count(tmp_path: Path) -> None:
    plain = compiled(tmp_path, Perceptron, "[dp, _]").program
    again = compiled(tmp_path, Perceptron, "[dp, _]", 'recompute "**"').program
    assert model_flops(plain) == model_flops(again)


def test_products_count_at_the_peak_of_their_type(tmp_path: Path) -> None:
    """Those of a type that is not stated at the greatest peak, and it is said."""
    flops = 3 * 2 * 8 * (6 * 10 + 10 * 7 + 7 * 3) - 2 * 8 * 6 * 10
    cases = {
        "cluster { peak f32 = 1e6  peak bf16 = 3e6 }": flops / 1e6 / 2,
        "cluster { peak f16 = 1e6  peak bf16 = 3e6 }": flops / 3e6 / 2,
        "cluster { peak f32 = 1e6  peak bf16 = 3e6 } precision { compute = bf16 }": flops / 3e6 / 2,
    }
    works = {}
    for text, want in cases.items():
        found = compiled(tmp_path, Perceptron, "[dp, _]", text)
        work = works[text] = work_of(found)
        assert work is not None and work.at_peak_s == pytest.approx(want, rel=1e-12)
        assert bool(list(without_peak(found))) == ("f32" not in text)
    work = works["cluster { peak f32 = 1e6  peak bf16 = 3e6 }"]
    assert work.mfu({"x": torch.zeros(8, 6)}, 1.0) == work.at_peak_s
    assert work.mfu({"x": torch.zeros(5, 6)}, 1.0) is None
    assert work_of(compiled(tmp_path, Perceptron, "[dp, _]")) is None
