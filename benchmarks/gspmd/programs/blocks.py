"""Attention, transformer blocks and experts. Shapes: b batch, s sequence, d hidden, h heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Out = dict[str, Tensor]


class Attention(nn.Module):
    """Causal attention with `kv` key and value heads for `heads` query heads."""

    def __init__(self, d: int, heads: int, kv: int) -> None:
        super().__init__()
        self.heads, self.kv, self.size = heads, kv, d // heads
        self.q = nn.Linear(d, d, bias=False)
        self.k = nn.Linear(d, kv * self.size, bias=False)
        self.v = nn.Linear(d, kv * self.size, bias=False)
        self.o = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q = self.q(x).view(b, s, self.kv, self.heads // self.kv, self.size)
        k = self.k(x).view(b, s, self.kv, self.size)
        v = self.v(x).view(b, s, self.kv, self.size)
        scores = torch.einsum("bqkgd,btkd->bkgqt", q, k) * self.size**-0.5
        mask = torch.ones(s, s, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        out = torch.einsum("bkgqt,btkd->bqkgd", weights, v)
        return self.o(out.reshape(b, s, d))


class Alone(nn.Module):
    """Attention and a residual."""

    def __init__(self, d: int, heads: int, kv: int) -> None:
        super().__init__()
        self.attn = Attention(d, heads, kv)

    def forward(self, x: Tensor) -> Out:
        y = x + self.attn(x)
        return {"loss": y.square().mean(), "y": y}


def attention(d: int, heads: int, kv: int) -> nn.Module:
    return Alone(d, heads, kv)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, d: int, f: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = Attention(d, heads, heads)
        self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Lm(nn.Module):
    """A language model of a few blocks."""

    def __init__(self, v: int, d: int, f: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(v, d)
        self.blocks = nn.ModuleList(Block(d, f, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, v, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Out:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def lm(v: int, d: int, f: int, heads: int, layers: int) -> nn.Module:
    return Lm(v, d, f, heads, layers)


class Moe(nn.Module):
    """GShard's top-1 dispatch and combine; g groups of s tokens, e experts, capacity c."""

    def __init__(self, d: int, f: int, e: int, c: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(d, e) * d**-0.5)
        self.w1 = nn.Parameter(torch.randn(e, d, f) * d**-0.5)
        self.w2 = nn.Parameter(torch.randn(e, f, d) * f**-0.5)
        self.e, self.c = e, c
        self.inside = nn.Identity()

    def forward(self, x: Tensor) -> Out:
        probs = torch.einsum("gsd,de->gse", x, self.gate).softmax(-1)
        chosen = F.one_hot(probs.argmax(-1), self.e)
        place = chosen.cumsum(1) * chosen - 1
        kept = chosen * (place < self.c)
        slots = F.one_hot(place.clamp(0, self.c - 1), self.c).to(x.dtype)
        dispatch = slots * kept.unsqueeze(-1).to(x.dtype)
        combine = dispatch * probs.unsqueeze(-1)
        inside = self.inside(torch.einsum("gsec,gsd->egcd", dispatch, x))
        h = torch.relu(torch.einsum("egcd,edf->egcf", inside, self.w1))
        out = torch.einsum("egcf,efd->egcd", h, self.w2)
        y = torch.einsum("gsec,egcd->gsd", combine, out)
        return {"loss": y.square().mean(), "y": y}


def moe(d: int, f: int, e: int, c: int) -> nn.Module:
    return Moe(d, f, e, c)
