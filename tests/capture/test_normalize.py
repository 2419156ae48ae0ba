"""normalize: each kind of construct keeps its meaning and loses its side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from shardlang.capture import CaptureError
from tests.capture.compare import capture_plain, run_both, targets

SAME: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
"""Forwards whose graph must equal eager execution, with the parts that they use."""


def same(**parts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(forward: Callable[..., Any]) -> Callable[..., Any]:
        SAME[forward.__name__] = forward, parts
        return forward

    return add


@same()
def writes_through_views(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    middle = y[:, 1:3]
    turned = y.transpose(0, 1)
    middle.mul_(2)
    turned[0].add_(1)
    y[..., -1] = 0
    y.view(-1)[3] = 5.0
    return y.sum() * 2 + (middle * turned[1:3].t()).sum(), y, middle


@same()
def chained_writes(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x).mul_(2).add_(x).neg_()
    return F.relu(y, inplace=True).sum()


@same()
def masked_writes(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    y[x > 0] = 0.0
    y.masked_fill_(x < -1, 3.0)
    y[torch.tensor([0, 2])] *= 2
    return y.pow(2).sum()


@same()
def writes_through_a_dropout_that_is_off(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    same = F.dropout(torch.feature_dropout(y, 0.0, True), 0.0)
    same[x > 0] = 0.5
    off = F.alpha_dropout(same, 0.5, training=False)
    off[1:3].mul_(3)
    return (y * same).sum() + F.dropout(y, 0.5).sum()


@same()
def scattered_writes(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    z = torch.zeros_like(y).scatter_(1, torch.argsort(x, -1), y)
    z.index_add_(0, torch.tensor([0, 1]), y[:2])
    z.clamp_(min=-0.5)
    return (z * x).sum()


@same()
def permuted_and_strided_writes(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)[:1].expand(8, 6).clone()
    y[2] = 1
    z = y.unflatten(1, (2, 3)).permute(2, 0, 1)
    z[0] += 1
    y.view(-1)[::5] = 0
    y.diagonal().zero_()
    return (y * x).sum()


@same()
def typed_write(self: Any, x: torch.Tensor) -> Any:
    y = torch.zeros(8, 6, dtype=torch.float32)
    y.copy_(self.lin(x).double())
    y += torch.ones(6, dtype=torch.float64)
    return (y * x).sum()


@same(bn=lambda: nn.BatchNorm1d(6))
def batch_norm(self: Any, x: torch.Tensor) -> Any:
    return self.bn(self.lin(x)).pow(3).sum()


@same(count=torch.zeros(()), average=torch.zeros(6))
def counted(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    self.count += 1
    with torch.no_grad():
        self.average.mul_(0.9).add_(y.mean(0), alpha=0.1)
    return (y * self.average).sum() / self.count


@same(average=torch.zeros(6))
def assigned_buffer(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    self.average = self.average * 0.9 + y.mean(0).detach()
    return (y * self.average).sum()


@same()
def grad_regions(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    with torch.no_grad():
        w = y.softmax(-1)
        with torch.enable_grad():
            q = y * w
        v = q + y
    return (y * w + q + v).sum(), q


@same()
def detached(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    return (y * y.detach()).sum()


@same(wide=lambda: parametrizations.spectral_norm(nn.Linear(6, 4)))
def writes_with_out(self: Any, x: torch.Tensor) -> Any:
    return self.wide(self.lin(x)).pow(2).sum()


@same(attention=lambda: nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True))
def attention_dropout(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)[None]
    return self.attention(y, y, y, need_weights=False)[0].pow(2).sum()


@same()
def causal_attention_dropout(self: Any, x: torch.Tensor) -> Any:
    q = self.lin(x).view(1, 4, 4, 3)
    kv = q[:, ::2]
    out = F.scaled_dot_product_attention(
        q, kv, kv, dropout_p=0.3, is_causal=True, scale=-0.7, enable_gqa=True
    )
    return out.pow(2).sum()


@same()
def masked_attention_dropout(self: Any, x: torch.Tensor) -> Any:
    q = self.lin(x).view(2, 2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    hard = F.scaled_dot_product_attention(q, q, q, attn_mask=mask, dropout_p=0.3)
    soft = F.scaled_dot_product_attention(q, q, q, attn_mask=mask.float(), dropout_p=0.3)
    return (hard + soft).pow(2).sum()


@same(
    layer=lambda: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True),
    recurrent=lambda: nn.LSTM(6, 5, 2, batch_first=True, dropout=0.3),
)
def torch_layers(self: Any, x: torch.Tensor) -> Any:
    return self.recurrent(self.layer(self.lin(x)[None]))[0].pow(2).sum()


@same(a=lambda: nn.Dropout(0.3), b=lambda: nn.AlphaDropout(0.2), c=lambda: nn.Dropout1d(0.2),
      d=lambda: nn.RReLU())  # fmt: skip
def kinds_of_dropout(self: Any, x: torch.Tensor) -> Any:
    return self.d(self.c(self.b(self.a(self.lin(x)))[None])).pow(2).sum()


@same()
def drawn_noise(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    m = torch.empty_like(y).bernoulli_(0.4)
    u = torch.empty(8, 6).uniform_(-1, 1) + torch.zeros(8, 6).normal_(0, 2)
    return (y + torch.randn_like(y) * m + u).pow(2).sum()


@same(rms=lambda: nn.RMSNorm(6), narrow=lambda: parametrizations.weight_norm(nn.Linear(6, 4)))
def norms(self: Any, x: torch.Tensor) -> Any:
    return self.narrow(self.rms(self.lin(x))).pow(3).sum()


@same()
def draws_in_memory_order(self: Any, x: torch.Tensor) -> Any:
    """The copies are not values of their own, but decide which element gets which number."""
    y = self.lin(x)
    turned = F.dropout(y.t().contiguous() * 2, 0.5)
    kept = F.dropout(y.t(), 0.5)
    cube = torch.stack([y, 2 * y, 3 * y]).permute(2, 0, 1)
    back = cube.contiguous().permute(1, 2, 0)
    return turned.sum() + (kept * turned).sum() + (F.dropout(back, 0.3) * cube.sum()).sum()


@same()
def maps_over_elements(self: Any, x: torch.Tensor) -> Any:
    def score(row: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(row > 0, row * weight, row).softmax(-1) @ weight

    def table(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i >= j) & (j % 2 == 0)

    y = self.lin(x)
    scores = torch.vmap(torch.vmap(score, in_dims=(None, 0)), in_dims=(0, None))(y, self.lin.weight)
    places = torch.arange(y.shape[0])
    mask = torch.vmap(torch.vmap(table, in_dims=(None, 0)), in_dims=(0, None))(places, places)
    return (scores * mask.float().sum()).sum(), mask


@pytest.mark.parametrize("name", SAME)
def test_meaning_is_kept(name: str) -> None:
    """Results, gradients and the new values of buffers are those of eager execution.

    No operator of a normalized graph writes an operand, and none is a region.
    """
    forward, parts = SAME[name]
    source, captured, specs = capture_plain(forward, **parts)
    assert run_both(source, captured, specs).error() < 1e-6
    calls = [n.target for n in captured.graph.nodes if n.op == "call_function"]
    operators = [c for c in calls if isinstance(c, torch._ops.OpOverload)]
    assert not [c for c in operators if c._schema.is_mutable]
    assert not [c for c in calls if isinstance(c, torch._ops.HigherOrderOperator)]


def test_written_buffers_are_results() -> None:
    _, captured, _ = capture_plain(*SAME["counted"][:1], **SAME["counted"][1])
    assert [(r.name, r.kind) for r in captured.results] == [
        ("output", "output"),
        ("count", "mutation"),
        ("average", "mutation"),
    ]


def test_gradient_free_values_end_in_detach() -> None:
    _, captured, _ = capture_plain(SAME["grad_regions"][0])
    assert targets(captured).count("detach.default") == 2


def test_noise_free_operators_vanish() -> None:
    """Copies, switched-off dropouts, casts to the same type and whole slices leave no trace."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        y = F.dropout(self.lin(x), 0.5, training=False).contiguous().clone().float()
        return F.dropout(y[:, :], 0.0).view(8, -1).expand(8, 6) * 1.0

    _, captured, _ = capture_plain(forward)
    assert targets(captured) == ["linear.default"]


def test_spellings_are_unified() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        y = self.lin(x).view(2, -1, 6).flatten(1).unflatten(1, (3, 8)).type(torch.float64)
        return y[:, -2:].to("cpu", torch.float16)

    _, captured, _ = capture_plain(forward)
    assert targets(captured) == [
        "linear.default", "reshape.default", "reshape.default", "reshape.default", "to.dtype",
        "slice.Tensor", "to.dtype",
    ]  # fmt: skip
    sliced = next(n for n in captured.graph.nodes if "slice" in n.name)
    assert sliced.args[1:] == (1, 1, 3)


def test_eval_mode_keeps_running_statistics() -> None:
    source, captured, specs = capture_plain(SAME["batch_norm"][0], "eval", **SAME["batch_norm"][1])
    assert [r.kind for r in captured.results] == ["output"]
    assert run_both(source, captured, specs).error() == 0.0


def writes_behind_autograd(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    with torch.no_grad():
        y.mul_(2)
    return y.sum()


def writes_to_detached(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    y.detach().mul_(2)
    return y.sum()


def writes_an_input(self: Any, x: torch.Tensor) -> Any:
    x += 1
    return self.lin(x).sum()


def writes_a_parameter(self: Any, x: torch.Tensor) -> Any:
    with torch.no_grad():
        self.lin.weight.mul_(0.5)
    return self.lin(x).sum()


def casts_itself(self: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.lin(x)


def resizes(self: Any, x: torch.Tensor) -> Any:
    y = self.lin(x)
    y.unsqueeze_(0)
    return y.sum()


@pytest.mark.parametrize(
    ("forward", "code"),
    [
        (writes_behind_autograd, "SH0357"),
        (writes_to_detached, "SH0357"),
        (writes_an_input, "SH0357"),
        (writes_a_parameter, "SH0357"),
        (resizes, "SH0357"),
        (casts_itself, "SH0358"),
    ],
)
def test_refused(forward: Callable[..., Any], code: str) -> None:
    """What cannot be expressed is refused at its line."""
    with pytest.raises(CaptureError) as caught:
        capture_plain(forward)
    assert caught.value.code == code
    assert caught.value.source.startswith("test_normalize.py:")
