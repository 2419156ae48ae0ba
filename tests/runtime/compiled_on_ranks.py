"""Compiled steps on two gloo processes, beside the plain model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from called import Pair, gap, refusal
from stored import Stacked, stacked
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import shardlang
from shardlang.ir.compat import Backend, Results, backend_named
from shardlang.runtime.module import held
from tests.cost.measured import measured_peak
from tests.experts.models import experts


class Block(nn.Module):
    """Two linears of uneven sizes and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b h`."""
        made: Tensor = self.drop(self.down(F.gelu(self.up(self.norm(x)))))
        return x + made


class Words(nn.Module):
    """A table that is tied to the head, and blocks with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Shape `b`."""
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return {"loss": F.cross_entropy(x @ self.table.weight.T, (ids + 1) % 7), "x": x}


class Heads(nn.Module):
    """Attention with a bias that is trained, and causal attention, over five heads."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(10, 30, bias=False), nn.Linear(10, 10)
        self.bias = nn.Parameter(torch.linspace(-1, 2, 80).sin().view(5, 4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b s m`."""
        q, k, v = self.into(x).unflatten(-1, (3, 5, 2)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, self.bias)
        y = y * F.scaled_dot_product_attention(k, q, v, is_causal=True)
        return {"loss": self.out(y.transpose(1, 2).flatten(2)).square().mean()}


@dataclass(frozen=True, slots=True)
class Case:
    """A spec, the model, and a batch."""

    text: str
    build: Callable[[], nn.Module]
    batch: dict[str, Tensor]


IDS = {"ids": torch.tensor([3, 1, 6, 6, 0, 2, 5])}
MIXED = {"ids": torch.tensor([3, 1, 6, 6, 0, 2, 5]), "labels": torch.tensor([1, 1, 0, 4, 5, 2, 3])}
ROWS = {"x": torch.linspace(-2, 3, 42, dtype=torch.float64).sin().mul(3).view(7, 6)}
SPLIT = 'param "blocks.*.up.*" [d, ...]\nparam "blocks.*.down.weight" [_, d]\n'
CASES = {
    "stored": Case(
        'mesh {{ d = 2 }}\ninput ids : i64[7] below 7 [d]\nstore "**" over d regather\nloss loss\n',
        Words,
        IDS,
    ),
    "again": Case(
        'mesh {{ d = 2 }}\ninput ids : i64[7] below 7 [d]\nrecompute "blocks.*"\nloss loss\n'
        'store gradients "**" over d\n',
        Words,
        IDS,
    ),
    "tensor": Case(
        "mesh {{ d = 2 }}\ninput ids : i64[7] below 7 [_]\nloss loss\n" + SPLIT, Words, IDS
    ),
    "heads": Case(
        "mesh {{ d = 2 }}\ninput x : f64[3, 4, 10] [_, _, _]\nloss loss\n"
        'param "into.weight" [d, _]\nparam "out.weight" [_, d]\nparam "bias" [d, _, _]\n',
        Heads,
        {"x": torch.linspace(-2, 3, 120, dtype=torch.float64).sin().mul(2).view(3, 4, 10)},
    ),
    "routed": Case(
        'mesh {{ d = 2 }}\ninput x : f64[7, 6] [d, _]\nparam "{{up,down}}" [d, _, _]\nloss loss\n',
        experts,
        ROWS,
    ),
}


class Counting:
    """A backend, and how often each op stands in what it compiles."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.ops = inner, Counter[str]()

    def __call__(self, module: fx.GraphModule, inputs: list[object]) -> Results:
        """Compile a region."""
        self.ops.update(str(n.target) for n in module.graph.nodes if n.op == "call_function")
        return self.inner(module, inputs)


def compared(case: Case) -> dict[str, Any]:
    """Loss and gradients of two steps and a forward, and how many regions were compiled."""
    pair = Pair(case.text, case.build, n=2)
    backend = Counting(backend_named("aot_eager"))
    pair.run = torch.compile(pair.module, backend=backend)
    gaps = [pair.step(case.batch) for _ in range(2)]
    with torch.no_grad():
        gaps.append(pair.step(case.batch))
    ((_, regions),) = held(pair.module).backends._others
    return {"gap": max(gaps), "regions": (regions.sites, regions.compiled), "ops": backend.ops}


ACCUMULATED = (
    'mesh { d = 2 }\ninput ids, labels : i64[8] below 7 [d]\naccumulate 2\nstore "**" over d\n'
    "loss loss\noptimizer sgd(lr = 0.1)\n"
)


class Penalised(Stacked):
    """Its loss reads parameters: one device adds that, and the first microbatch of it."""

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b`."""
        loss = super().forward(ids, labels)["loss"]
        return {"loss": loss + 0.1 * self.blocks[1].get_parameter("up.weight").square().mean()}


def penalised() -> nn.Module:
    torch.manual_seed(4)
    return Penalised().double()


def accumulated() -> float:
    """How far parameters are from the plain model's after two steps of microbatches."""
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(ACCUMULATED)
    program = shardlang.compile(path, model=penalised)
    with patch("shardlang.runtime.backends.INDUCTOR", "aot_eager"):
        module = program.load(compile=True)
    plain = penalised()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    batch = {n: torch.cat([x, x[:1]]) for n, x in MIXED.items()}
    worst = 0.0
    for _ in range(2):
        made = program.step(batch)
        optimizer.zero_grad()
        loss = plain(**batch)["loss"]
        loss.backward()
        optimizer.step()
        worst = max(worst, abs(made.loss - loss.item()))
    pairs = zip(module.parameters(), plain.parameters(), strict=True)
    return max(worst, *(gap(mine.full_tensor(), one) for mine, one in pairs))


def peaks() -> tuple[int, int]:
    """The most live bytes of a step, op by op and compiled."""
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text('mesh { d = 2 }\ninput ids, labels : i64[8] below 7 [d]\nstore "**" over d\n')
    program = shardlang.compile(path, model=stacked)
    with patch("shardlang.runtime.backends.INDUCTOR", "aot_eager"):
        return measured_peak(program, 2), measured_peak(program, 2, compile=True)


def failing() -> list[tuple[str, str]]:
    """What each rank hears in two steps whose backward rank 1 cannot compile."""
    pair, heard = Pair(CASES["tensor"].text, Words, n=2), []
    inner = backend_named("aot_eager")

    def backend(module: fx.GraphModule, inputs: list[object]) -> Results:
        if dist.get_rank() == 1 and any("backward" in str(n.target) for n in module.graph.nodes):
            raise FileNotFoundError("no c++")
        return inner(module, inputs)

    pair.run = torch.compile(pair.module, backend=backend)
    for _ in range(2):
        heard.append(refusal(lambda: pair.step(IDS)))
    return heard


def everything() -> dict[str, Any]:
    """One job of two processes."""
    counters.clear()
    found: dict[str, Any] = {name: compared(case) for name, case in CASES.items()}
    found["breaks"] = dict(counters["graph_break"])
    return {**found, "accumulated": accumulated(), "peaks": peaks(), "failing": failing()}
