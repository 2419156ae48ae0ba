"""Small models whose programs lay values out anew, or gather views of parameters again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shardlang.spec import Spec, load_spec_text


class Flat(nn.Module):
    """A flattened dim: every device holds a part of each row, and then whole stretches."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`x` is b s h, s split."""
        flat = self.up(x).flatten(0, 1)
        return {"loss": flat.square().mean(), "flat": flat}


class Packed(nn.Module):
    """Values laid out in other blocks, without a gradient and with one."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.up = nn.Tanh(), nn.Linear(12, 12)
        self.act, self.down = nn.GELU(), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`x` is b h, h split plainly."""
        packed = self.pre(x)
        y = self.down(self.act(self.up(x)))
        return {"loss": y.square().mean() + packed.square().sum(), "packed": packed}


class Rotated(nn.Module):
    """A real parameter that is used as a complex one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.w, self.how = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 4, 2)), how

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`x` is b h, `target` b o."""
        w, h = torch.view_as_complex(self.w), torch.tanh(self.first(x))
        z = torch.complex(h, h * h)
        if self.how == "conjugated":
            y = (z.unsqueeze(-1) * w.conj()).sum(1)
        elif self.how == "negated":
            return {"loss": (h @ w.conj().imag - target).square().mean()}
        else:
            y = z @ w
        return {"loss": (y.imag * y.real - target).square().mean()}


def flat() -> nn.Module:
    """In float64."""
    return Flat().double()


def packed() -> nn.Module:
    """In float64."""
    return Packed().double()


def rotated(how: str) -> nn.Module:
    """In float64; `how` the parameter is used: complex, conjugated, negated."""
    return Rotated(how).double()


_ROTATED = """
mesh { dp = 2 }
model "tests/moves/models.py:rotated"(how = "HOW")
input x : f64[6, 6] [dp, _]
input target : f64[6, 4] [dp, _]
store "**" over dp regather
optimizer sgd(lr = 0.1)
"""

SPECS = {
    "from rows to stretches": """
mesh { a = 2 }
model "tests/moves/models.py:flat"
input x : f64[3, 4, 6] [_, a, _]
output flat [a, _]
optimizer sgd(lr = 0.1)
""",
    "to other blocks": """
mesh { a = 2 }
model "tests/moves/models.py:packed"
input x : f64[4, 12] [_, a]
value "pre".out [_, a(3)]
param "up.weight" [a, _]
value "act".out [_, a(2)]
optimizer sgd(lr = 0.1)
""",
    **{f"regather, {how}": _ROTATED.replace("HOW", how)
       for how in ("complex", "conjugated", "negated")},
    "recompute, modules and what is cheap": """
mesh { a = 2 }
model "tests/step/deep.py:Deep"
input x : f64[5, 8] [_, _]
param "**.up.*" [a, ...]
param "**.down.weight" [_, a]
store "**.norm.*" over a regather
optimizer sgd(lr = 0.01)
recompute "blocks.{1..3}"
recompute selective
""",
}  # fmt: skip


def spec_of(text: str) -> Spec:
    """The spec of a text, read in the folder of the project."""
    spec, findings = load_spec_text(text, "spec.shard")
    assert spec is not None, findings
    return spec
