"""Experts in plain torch, whose router can be made to choose as a test needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shardlang.rules.experts.local_grouped import grouped_mm


class Experts(nn.Module):
    """A router and gated experts, with or without a bias.

    `choice` is what the router says, or `one` and `last`: all rows to the second expert, or to the
    last two, so that devices are left with no row.
    """

    def __init__(self, experts: int, top: int, choice: str, biased: bool) -> None:
        super().__init__()
        self.experts, self.top, self.choice = experts, top, choice
        self.router = nn.Linear(6, experts)
        self.up = nn.Parameter(torch.randn(experts, 6, 10))
        self.down = nn.Parameter(torch.randn(experts, 5, 6))
        self.bias = nn.Parameter(torch.randn(experts, 6)) if biased else None

    def chosen(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers `t k` of the experts of every token."""
        weights, chosen = self.router(tokens).softmax(-1).topk(self.top)
        if self.choice == "one":
            chosen = chosen * 0 + 1
        if self.choice == "last":
            chosen = chosen % 2 + self.experts - 2
        return weights, chosen

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = x.flatten(0, -2)
        weights, chosen = self.chosen(tokens)
        groups = chosen.reshape(-1)
        rows = tokens.repeat_interleave(self.top, dim=0)
        gate, up = grouped_mm(rows, self.up, groups).chunk(2, dim=-1)
        made = grouped_mm(F.silu(gate) * up, self.down, groups)
        if self.bias is not None:
            made = made + self.bias[groups]
        made = (made * weights.reshape(-1, 1)).view(-1, self.top, 6).sum(1).view(x.shape)
        return {"loss": (made + x).square().mean(), "made": made}


def experts(
    count: int = 5, top: int = 2, choice: str = "router", biased: bool = False
) -> nn.Module:
    """One layer of experts."""
    return Experts(count, top, choice, biased)


class Viewed(nn.Module):
    """Products with views between them: gate and up as two blocks of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(5, 6, 10))
        self.down = nn.Parameter(torch.randn(5, 5, 6))

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        gate, up = grouped_mm(x, self.up, groups).view(-1, 2, 5).unbind(1)
        return grouped_mm((F.silu(gate) * up).reshape(7, 5), self.down, groups)


def viewed() -> nn.Module:
    """Experts whose rows are regrouped on the way."""
    return Viewed()


class Named(nn.Module):
    """Experts whose activation is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(5, 6, 10))
        self.down = nn.Parameter(torch.randn(5, 10, 6))
        self.act = nn.GELU()

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        return grouped_mm(self.act(grouped_mm(x, self.up, groups)), self.down, groups) + 1.0


def named() -> nn.Module:
    """Experts that return what a module gives."""
    return Named()


class Looked(nn.Module):
    """Every row times a matrix that is looked up for it, and a bias that is."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 8, 6))
        self.bias = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        made = torch.bmm(self.matrix[groups], x.unsqueeze(-1)).squeeze(-1)
        return torch.tanh(made + self.bias[groups])


def looked() -> nn.Module:
    """Experts without a product by groups."""
    return Looked()


class Table(nn.Module):
    """A row of a table added to every row, as positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        return x + self.table[groups]


def table() -> nn.Module:
    """A look-up that is not a product."""
    return Table()


class Crossed(nn.Module):
    """Two routers that decide over the same rows: what both give goes to the experts of both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (
            nn.Parameter(torch.randn(5, 6, 6)) for _ in range(4)
        )

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        others = (groups * 2 + 1) % 5
        made = F.silu(grouped_mm(x, self.one, groups) + grouped_mm(x, self.two, others))
        return grouped_mm(made, self.three, groups) + grouped_mm(made, self.four, others)


def crossed() -> nn.Module:
    """Experts of two routers on one path."""
    return Crossed()


class Mixing(nn.Module):
    """Experts between whose products the rows of a token are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 6, 10))
        self.down = nn.Parameter(torch.randn(4, 10, 6))

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        made = grouped_mm(x, self.up, groups)
        made = made - made.view(-1, 2, 10).mean(1, keepdim=True).expand(-1, 2, 10).reshape(-1, 10)
        return grouped_mm(made, self.down, groups)


def mixing() -> nn.Module:
    """Experts that cannot stay in routed order from one product to the next."""
    return Mixing()
