"""Models with experts, shared matrices and adapters that are written by hand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, INNER, COUNT = 12, 20, 4


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield {"x": torch.randn(4, 6, WIDTH, generator=generator)}


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 4)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Stacked(nn.Module):
    """Every token goes through every expert of a stack, in one einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT, bias=False)
        self.w1, self.b1 = table(COUNT, WIDTH, INNER), table(COUNT, INNER)
        self.w2 = table(COUNT, INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        inner = F.silu(torch.einsum("bsd,edf->bsef", x, self.w1) + self.b1)
        return torch.einsum("bsef,efd,bse->bsd", inner, self.w2, scores).square().mean()


class Batched(nn.Module):
    """The same with `bmm`, and scores that are zero for all but two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT)
        self.w1, self.w2 = table(COUNT, WIDTH, INNER), table(COUNT, INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        best, which = self.gate(tokens).sigmoid().topk(2, -1)
        scores = torch.zeros(len(tokens), COUNT, dtype=x.dtype).scatter(1, which, best)
        inner = torch.bmm(tokens.expand(COUNT, -1, -1), self.w1)
        made = torch.bmm(F.gelu(inner), self.w2) * scores.t().unsqueeze(-1)
        return made.sum(0).square().mean()


class Balanced(nn.Module):
    """Experts whose balance each step reads whole from a buffer, and writes."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT, bias=False)
        self.w = table(COUNT, WIDTH, WIDTH)
        self.register_buffer("bias", torch.zeros(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        picked = (scores + self.bias).topk(2, -1).indices
        weights = torch.zeros_like(scores).scatter(-1, picked, scores.gather(-1, picked))
        load = F.one_hot(picked, COUNT).sum(-2).to(x.dtype).mean((0, 1))
        with torch.no_grad():
            self.bias += 0.01 * torch.sign(load.mean() - load)
        return torch.einsum("bsd,edf,bse->bsf", x, self.w, weights).square().mean()


class Picked(nn.Module):
    """Each token picks the matrices of one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT)
        self.w1, self.w2 = table(COUNT, WIDTH, INNER), table(COUNT, INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        score, which = self.gate(tokens).softmax(-1).max(-1)
        inner = torch.bmm(tokens.unsqueeze(1), self.w1[which]).relu()
        return (torch.bmm(inner, self.w2[which]).squeeze(1) * score.unsqueeze(-1)).square().mean()


class Indexed(nn.Module):
    """A loop over the matrices of two stacks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT)
        self.w1, self.w2 = table(COUNT, WIDTH, INNER), table(COUNT, INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        made = [
            scores[..., i : i + 1] * (F.relu(x @ self.w1[i]) @ self.w2[i]) for i in range(COUNT)
        ]
        return sum(made[1:], made[0]).square().mean()


class Looped(nn.Module):
    """A loop over modules, whose results are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT, bias=False)
        self.parts = nn.ModuleList(Mlp() for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.gate(x).softmax(-1).topk(2, -1)
        for i, part in enumerate(self.parts):
            x = x + part(x) * ((which == i) * best).sum(-1, keepdim=True)
        return x.square().mean()


class Listed(nn.Module):
    """Lists of parameters, stacked in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT)
        self.w1 = nn.ParameterList(table(WIDTH, INNER) for _ in range(COUNT))
        self.w2 = nn.ParameterList(table(INNER, WIDTH) for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        inner = torch.einsum("bsd,edf->bsef", x, torch.stack(list(self.w1))).relu()
        made = torch.einsum("bsef,efd->bsed", inner, torch.stack(list(self.w2)))
        return (made * scores.unsqueeze(-1)).sum(2).square().mean()


class Heads(nn.Module):
    """No experts: as many heads, each a parameter, and as many layers, before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (table(COUNT, WIDTH, 3) for _ in range(3))
        self.wo = table(COUNT, 3, WIDTH)
        self.layers = nn.ModuleList(Mlp() for _ in range(COUNT))
        self.head = nn.Linear(WIDTH, COUNT)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsd,hde->bhse", x, w) for w in (self.wq, self.wk, self.wv))
        seen = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + torch.einsum("bhse,hed->bsd", seen, self.wo)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x).softmax(-1).square().mean()


class Adapter(nn.Module):
    """Square layers with one adapter for all of them, whose two matrices are one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = table(4, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
            x = x + F.relu(x @ self.w.t()) @ self.w
        return x.square().mean()


class Vera(nn.Module):
    """Two frozen random matrices for all layers, and trained vectors between and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.randn(4, WIDTH))
        self.register_buffer("b", torch.randn(WIDTH, 4))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.inside = nn.ParameterList(torch.full((4,), 0.1) for _ in range(3))
        self.behind = nn.ParameterList(torch.full((WIDTH,), 0.3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer, d, b in zip(self.layers, self.inside, self.behind, strict=True):
            x = torch.tanh(layer(x) + b * F.linear(d * F.linear(x, self.a), self.b))
        return x.square().mean()


class Tied(nn.Module):
    """A decoder with the encoder's matrices, one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(WIDTH, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.inner(torch.tanh(self.outer(x))))
        made = torch.tanh(code @ self.inner.weight) @ self.outer.weight
        return (made - x).square().mean()


class Recurrent(nn.Module):
    """One square matrix, applied to its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        state = x
        for _ in range(3):
            state = torch.tanh(self.w(state) + x)
        return state.square().mean()


def build(kind: str) -> nn.Module:
    return globals()[kind]()
