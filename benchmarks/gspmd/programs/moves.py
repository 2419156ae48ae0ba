"""Programs whose ops move indices: shifts, windows, joins, cuts. Shapes: b batch, s sequence, d."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Out = dict[str, Tensor]


class Made(nn.Module):
    """A product `x w`, then one function of it."""

    def __init__(self, kind: str, d: int, f: int) -> None:
        super().__init__()
        self.kind = kind
        self.w = nn.Parameter(torch.randn(d, f) * 0.1)

    def forward(self, x: Tensor) -> Out:
        h = torch.tanh(x @ self.w)
        y = KINDS[self.kind](h)
        return {"loss": y.square().mean(), "y": y}


def flip(h: Tensor) -> Tensor:
    return h.flip(1)


def far_shift(h: Tensor) -> Tensor:
    return h.roll(21, 1)


def causal(h: Tensor) -> Tensor:
    padded = F.pad(h, (0, 0, 3, 0))
    return sum(padded[:, i : i + h.shape[1]] * (i + 1) for i in range(4))


def halves(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def rotated(h: Tensor) -> Tensor:
    one, other = h.chunk(2, -1)
    return torch.cat([-other, one], -1) + h


def pairs(h: Tensor) -> Tensor:
    return h[..., 0::2] * h[..., 1::2]


def stacked(h: Tensor) -> Tensor:
    return torch.stack([h, h.square()], 1)


def flat(h: Tensor) -> Tensor:
    return h.flatten(0, 1)


def apart(h: Tensor) -> Tensor:
    b, s, d = h.shape
    return h.view(b, s // 4, 4, d).mean(2)


def doubled(h: Tensor) -> Tensor:
    return h.repeat_interleave(2, 1)


def differences(h: Tensor) -> Tensor:
    return (h.unsqueeze(2) - h.unsqueeze(1)).square().mean(-1)


def ends(h: Tensor) -> Tensor:
    return torch.cat([h[:, :1], h[:, -1:]], 1)


def first_half(h: Tensor) -> Tensor:
    return h[:, : h.shape[1] // 2]


def normalized(h: Tensor) -> Tensor:
    return h / h.norm(dim=(1, 2), keepdim=True)


def both_softmax(h: Tensor) -> Tensor:
    return h.flatten(1).softmax(-1).view_as(h)


def masked(h: Tensor) -> Tensor:
    s = h.shape[1]
    mask = torch.ones(s, s).tril() / s
    return torch.einsum("qs,bsd->bqd", mask, h)


def scores(h: Tensor) -> Tensor:
    return torch.einsum("bsd,btd->bst", h, h)


KINDS = {
    made.__name__: made
    for made in (
        flip, far_shift, causal, halves, rotated, pairs, stacked, flat, apart, doubled, differences,
        ends, first_half, normalized, both_softmax, masked, scores,
    )
}  # fmt: skip


def make(kind: str, d: int, f: int) -> nn.Module:
    return Made(kind, d, f)
