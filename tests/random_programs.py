"""Random programs and random layouts of them.

Every program is a chain of linears, norms, reshapes, additions and reductions on three-dimensional
values; parameters, inputs, inner values and storage are laid out at random, uneven sizes included.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardlang.capture import CallableSource, Captured, InputSpec
from shardlang.compiler.build import Statements, Storage
from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import tensor_of
from shardlang.ir.records import Stated

SIZES = (5, 6, 7, 8)
KINDS = (
    "linear", "linear", "norm", "act", "residual", "scale", "heads", "softmax", "swap", "reduce",
    "double",
)  # fmt: skip
WIDE_KINDS = (
    *KINDS, "linear", "roll", "conv", "running", "drop", "rows", "gate", "again", "sums", "turn",
    "flip", "pick",
)  # fmt: skip
"""Those above, and more."""
MESHES = (
    Mesh((Axis("a", 3),)),
    Mesh((Axis("a", 2), Axis("b", 2))),
    Mesh((Axis("a", 2), Axis("b", 3))),
)

WIDE_MESHES = (
    Mesh((Axis("a", 4),)),
    Mesh((Axis("a", 2), Axis("b", 2))),
    Mesh((Axis("a", 2), Axis("b", 2), Axis("c", 2))),
    Mesh((Axis("a", 4), Axis("b", 2))),
)


class Program(nn.Module):
    """A random chain of ops; every op keeps the value at three dims."""

    def __init__(self, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.kinds = kinds
        self.shape = tuple(rng.choice(SIZES) for _ in range(3))
        self.steps: list[Callable[[Tensor, list[Tensor]], Tensor]] = []
        self.parts = nn.ModuleList()
        width = self.shape[2]
        for _ in range(rng.randint(2, 6)):
            width = self._grow(rng, width)

    def _grow(self, rng: random.Random, width: int) -> int:
        kind = rng.choice(self.kinds)
        if kind == "linear":
            out = rng.choice(SIZES)
            self._add(nn.Linear(width, out, bias=rng.random() < 0.7))
            return out
        if kind == "norm":
            self._add(nn.LayerNorm(width))
        elif kind == "scale":
            self._add(Scale(width))
        elif kind == "act":
            self.steps.append(lambda x, seen: torch.tanh(x))
        elif kind == "softmax":
            dim = rng.randrange(3)
            self.steps.append(lambda x, seen: torch.softmax(x, dim))
        elif kind == "residual":
            back = rng.randrange(4)
            self.steps.append(lambda x, seen: x + _same(seen, x, back))
        elif kind == "double":
            self.steps.append(lambda x, seen: x * 2.0 - x.mean(dim=1, keepdim=True))
        elif kind == "reduce":
            self.steps.append(lambda x, seen: x + x.sum(dim=(0, 1)) * 0.1)
        elif kind == "swap":
            self.steps.append(lambda x, seen: x.transpose(0, 1).transpose(0, 1) + 1.0)
        elif kind in PARTS:
            self._add(PARTS[kind](width))
        elif kind == "again":
            self._again(rng, width)
        elif kind in STEPS:
            self.steps.append(STEPS[kind](rng))
        elif width % 2 == 0:
            self.steps.append(lambda x, seen: _mix_heads(x))
        return width

    def _again(self, rng: random.Random, width: int) -> None:
        """Use an earlier linear once more."""
        fits = [p for p in self.parts if isinstance(p, nn.Linear) and p.weight.shape[1] == width]
        if fits:
            part = rng.choice(fits)
            self.steps.append(lambda x, seen: _back(part(x), part))

    def _add(self, part: nn.Module) -> None:
        self.parts.append(part)
        self.steps.append(lambda x, seen: part(x))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for step in self.steps:
            x = step(x, seen)
            seen.append(x)
        return x


class Scale(nn.Module):
    """A gain of its own for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Conv(nn.Module):
    """A causal convolution along the second dim."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class Running(nn.Module):
    """A moving average of the features, in a buffer that is written."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
        return x * (1.0 + self.mean)


class Gate(nn.Module):
    """Two halves of one matrix, multiplied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return torch.sigmoid(gate) * up


class Turn(nn.Module):
    """A product in complex numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.complex(x, 0.5 * x) * torch.view_as_complex(self.by).conj()
        return turned.real + turned.imag


PARTS: dict[str, Callable[[int], nn.Module]] = {
    "conv": Conv,
    "running": Running,
    "drop": lambda width: nn.Dropout(0.2),
    "gate": Gate,
    "turn": Turn,
}
"""Modules that keep the width, by kind."""

STEPS: dict[str, Callable[[random.Random], Callable[[Tensor, list[Tensor]], Tensor]]] = {
    "roll": lambda rng: _rolled(rng.choice([1, 2, -1]), rng.randrange(3)),
    "rows": lambda rng: lambda x, seen: (x.flatten(0, 1) * 1.5).tanh().view(x.shape),
    "sums": lambda rng: lambda x, seen: x.cumsum(1) * 0.5,
    "flip": lambda rng: _flipped(rng.randrange(3)),
    "pick": lambda rng: lambda x, seen: torch.where(x > x.mean(), x, 0.1 * x),
}
"""Steps without parameters, by kind."""


def _rolled(shift: int, dim: int) -> Callable[[Tensor, list[Tensor]], Tensor]:
    return lambda x, seen: x + x.roll(shift, dim)


def _flipped(dim: int) -> Callable[[Tensor, list[Tensor]], Tensor]:
    return lambda x, seen: x - 0.5 * x.flip(dim)


def _back(x: Tensor, part: nn.Module) -> Tensor:
    """A linear's result in the width that it had before."""
    return x @ part.get_parameter("weight")


def _same(seen: list[Tensor], x: Tensor, back: int) -> Tensor:
    """An earlier value of the same shape."""
    fits = [value for value in seen if value.shape == x.shape]
    return fits[-1 - back % len(fits)] if fits else x


def _mix_heads(x: Tensor) -> Tensor:
    b, s, h = x.shape
    y = x.view(b, s, 2, h // 2).transpose(1, 2)
    scores = torch.softmax(y @ y.transpose(-1, -2), -1)
    return (scores @ y).transpose(1, 2).reshape(b, s, h)


def random_layout(
    rng: random.Random, shape: tuple[int, ...], mesh: Mesh, packed: bool = False
) -> Layout:
    """A layout that leaves every device something of every dim; some in blocks if asked for."""
    dims = [DimLayout.whole(size) for size in shape]
    for axis in rng.sample(mesh.axes, rng.randint(0, len(mesh.axes))):
        place = rng.randrange(len(shape))
        axes = (*dims[place].axes, axis)
        blocks = _blocks(rng, shape[place]) if packed else 1
        split = DimLayout.shard(shape[place], axes, blocks)
        if all_shards_nonempty(split):
            dims[place] = split
    return Layout(tuple(dims))


def _blocks(rng: random.Random, size: int) -> int:
    """A number of blocks that divides a dim."""
    return rng.choice([1, *(n for n in (1, 2, 3) if size % n == 0 and size > n)])


def random_statements(
    rng: random.Random, captured: Captured, mesh: Mesh, packed: bool = False
) -> Statements:
    """Layouts for some leaves and values, and storage for some parameters."""
    leaves, stores = {}, {}
    for leaf in captured.leaves:
        if leaf.kind == "input" or (leaf.kind in ("param", "buffer") and rng.random() < 0.6):
            leaves[leaf.name] = Stated(random_layout(rng, leaf.shape, mesh, packed))
        if leaf.kind == "param" and rng.random() < 0.3:
            stores[leaf.name] = Storage((rng.choice(mesh.axes),))
    values = {
        key: Stated(random_layout(rng, tuple(tensor_of(node).shape), mesh, packed))
        for key, node in captured.values.items()
        if key[0].count(".") == 1 and rng.random() < 0.3
    }
    data = frozenset(rng.sample(mesh.axes, rng.randint(0, 1)))
    return Statements(mesh, data, leaves, values, {}, stores)


def random_subject(
    seed: int, trial: int
) -> tuple[CallableSource, list[InputSpec], Callable[[Captured], Statements]]:
    """A program of all kinds, its input, and what lays it out; `trial` chooses the layout."""
    source = CallableSource(lambda: Program(seed, WIDE_KINDS))
    specs = [InputSpec("x", torch.float32, Program(seed, WIDE_KINDS).shape)]
    rng = random.Random(f"{seed}/{trial}")

    def place(found: Captured) -> Statements:
        made = random_statements(rng, found, rng.choice(WIDE_MESHES), packed=True)
        output = random_layout(rng, _output_shape(found), made.mesh, packed=True)
        return replace(made, outputs={"output": Stated(output)}, fast_random=rng.random() < 0.3)

    return source, specs, place


def _output_shape(found: Captured) -> tuple[int, ...]:
    return tuple(tensor_of(found.graph.output_node().args[0][0]).shape)
