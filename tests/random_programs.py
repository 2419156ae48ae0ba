"""Random programs and random layouts of them.

Every program is a chain of linears, norms, reshapes, additions and reductions on three-dimensional
values; parameters, inputs, inner values and storage are laid out at random, uneven sizes included.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shardlang.build import Placements, Storage
from shardlang.capture import CallableSource, Captured, InputSpec
from shardlang.ir import Axis, DimLayout, Layout, Mesh
from shardlang.ir.graph import Stated

SIZES = (5, 6, 7, 8)
KINDS = (
    "linear", "linear", "norm", "act", "residual", "scale", "heads", "softmax", "swap", "reduce",
    "double",
)  # fmt: skip
MESHES = (
    Mesh((Axis("a", 3),)),
    Mesh((Axis("a", 2), Axis("b", 2))),
    Mesh((Axis("a", 2), Axis("b", 3))),
)


class Program(nn.Module):
    """A random chain of ops; every op keeps the value at three dims."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.shape = tuple(rng.choice(SIZES) for _ in range(3))
        self.steps: list[Callable[[Tensor, list[Tensor]], Tensor]] = []
        self.parts = nn.ModuleList()
        width = self.shape[2]
        for _ in range(rng.randint(2, 6)):
            width = self._grow(rng, width)

    def _grow(self, rng: random.Random, width: int) -> int:
        kind = rng.choice(KINDS)
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
        elif width % 2 == 0:
            self.steps.append(lambda x, seen: _mix_heads(x))
        return width

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


def _same(seen: list[Tensor], x: Tensor, back: int) -> Tensor:
    """An earlier value of the same shape."""
    fits = [value for value in seen if value.shape == x.shape]
    return fits[-1 - back % len(fits)] if fits else x


def _mix_heads(x: Tensor) -> Tensor:
    b, s, h = x.shape
    y = x.view(b, s, 2, h // 2).transpose(1, 2)
    scores = torch.softmax(y @ y.transpose(-1, -2), -1)
    return (scores @ y).transpose(1, 2).reshape(b, s, h)


def random_layout(rng: random.Random, shape: tuple[int, ...], mesh: Mesh) -> Layout:
    """A layout that leaves every device something of every dim."""
    dims = [DimLayout.whole(size) for size in shape]
    for axis in rng.sample(mesh.axes, rng.randint(0, len(mesh.axes))):
        place = rng.randrange(len(shape))
        axes = (*dims[place].axes, axis)
        split = DimLayout.shard(shape[place], axes)
        if split.min_local_size() > 0:
            dims[place] = split
    return Layout(tuple(dims))


def random_placements(rng: random.Random, captured: Captured, mesh: Mesh) -> Placements:
    """Layouts for some leaves and values, and storage for some parameters."""
    leaves, stores = {}, {}
    for leaf in captured.leaves:
        if leaf.kind == "input" or rng.random() < 0.6:
            leaves[leaf.name] = Stated(random_layout(rng, leaf.shape, mesh))
        if leaf.kind == "param" and rng.random() < 0.3:
            stores[leaf.name] = Storage((rng.choice(mesh.axes),))
    values = {
        key: Stated(random_layout(rng, tuple(node.meta["val"].shape), mesh))
        for key, node in captured.values.items()
        if key[0].count(".") == 1 and rng.random() < 0.3
    }
    data = frozenset(rng.sample(mesh.axes, rng.randint(0, 1)))
    return Placements(mesh, data, leaves, values, {}, stores)


def random_subject(
    seed: int, trial: int
) -> tuple[CallableSource, list[InputSpec], Callable[[Captured], Placements]]:
    """A program, its input, and what lays it out; `trial` chooses the layout."""
    source = CallableSource(lambda: Program(seed))
    specs = [InputSpec("x", torch.float32, Program(seed).shape)]
    rng = random.Random(f"{seed}/{trial}")
    return source, specs, lambda found: random_placements(rng, found, rng.choice(MESHES))
