"""Small models of the usual parts. `x` is `b s h`, `ids` and `labels` are `b s`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linears, with a norm before and dropout after; the loss is the distance to `target`."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        y = x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))
        return {"loss": (y - target).square().mean(), "y": y}


def mlp(width: int = 12, inner: int = 14, dropout: float = 0.0) -> nn.Module:
    """A feed-forward block."""
    return Mlp(width, inner, dropout)


class Attention(nn.Module):
    """Fused q, k and v, in which keys and values may have fewer heads; causal if asked for."""

    def __init__(self, heads: int, keys: int, size: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.keys, self.size, self.causal = heads, keys, size, causal
        width = heads * size
        self.qkv = nn.Linear(width, (heads + 2 * keys) * size)
        self.out = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        b, s, _ = x.shape
        sizes = [self.heads * self.size, self.keys * self.size, self.keys * self.size]
        q, k, v = (
            part.view(b, s, -1, self.size).transpose(1, 2)
            for part in self.qkv(x).split(sizes, dim=-1)
        )
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout, is_causal=self.causal, enable_gqa=True
        )
        y = x + self.out(y.transpose(1, 2).reshape(b, s, -1))
        return {"loss": (y - target).square().mean(), "y": y}


def attention(
    heads: int = 4, keys: int = 4, size: int = 3, dropout: float = 0.0, causal: bool = True
) -> nn.Module:
    """One layer of attention."""
    return Attention(heads, keys, size, dropout, causal)


class Gated(nn.Module):
    """SwiGLU with gate and up in one matrix."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y = self.down(F.silu(gate) * up)
        return {"loss": (y - target).square().mean(), "y": y}


def gated(width: int = 10, inner: int = 9) -> nn.Module:
    """A gated feed-forward block."""
    return Gated(width, inner)


class Language(nn.Module):
    """A recurrent mixture of earlier words, with one table for words in and out."""

    def __init__(self, words: int, width: int, inner: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.place = nn.Parameter(torch.randn(6, width))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids) + self.place[: ids.shape[1]]
        for _ in range(2):
            x = x + self.down(torch.relu(self.up(self.norm(x.cumsum(1)))))
        logits = self.head(x)
        flat, wanted = logits.flatten(0, 1), labels.flatten()
        loss = F.cross_entropy(flat, wanted, ignore_index=1, label_smoothing=0.1)
        return {"loss": loss, "logits": logits, "best": logits.argmax(-1)}


def language(words: int = 13, width: int = 10, inner: int = 7) -> nn.Module:
    """A language model whose one block runs twice."""
    return Language(words, width, inner)


class Frozen(nn.Module):
    """bf16 and f32 in one model, a frozen matrix, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 10).to(torch.bfloat16)
        self.second, self.third = nn.Linear(10, 10), nn.Linear(10, 12)
        self.second.weight.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x.to(torch.bfloat16)).float())
        y = self.third(self.second(hidden))
        return (y - target).square().mean() + torch.zeros(2).sum()


def frozen() -> nn.Module:
    """A model of two dtypes."""
    return Frozen()


class Complex(nn.Module):
    """A filter in complex numbers: one parameter is complex, the other viewed as such."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.filter = nn.Parameter(torch.randn(width, 2))
        self.turn = nn.Parameter(torch.randn(width, dtype=torch.complex64))

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.inner(x))
        z = torch.complex(h, 0.5 * h) * torch.view_as_complex(self.filter).conj()
        z = z * self.turn
        return {"loss": (z.imag * z.real - target).square().mean(), "z": z}


def complex_filter(width: int = 6) -> nn.Module:
    """A model with complex values."""
    return Complex(width)


class Outputs(nn.Module):
    """No loss, but results of every kind: cotangents reach the parameters through three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 10), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> dict[str, object]:
        hidden = torch.relu(self.up(x))
        y = self.down(hidden)
        top = y.topk(3, dim=-1)
        return {
            "y": (y, hidden.sum(1)),
            "top": top.values,
            "at": top.indices,
            "high": y > 0.1,
            "any": (y > 1.0).any(),
            "counts": (hidden > 0).sum(-1),
            "order": hidden.argsort(-1),
        }


def outputs() -> nn.Module:
    """A model of many results."""
    return Outputs()


class Packed(nn.Module):
    """Two readers of one value, and rows that are made of two dims."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.up, self.down = nn.Tanh(), nn.Linear(12, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        packed = self.pre(self.down(self.up(x)))
        flat = self.up(packed).flatten(0, 1)
        return {"loss": (packed - target).square().mean() + flat.std(), "flat": flat}


def packed() -> nn.Module:
    """A model whose values are laid out anew."""
    return Packed()
