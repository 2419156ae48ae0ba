"""What the tests of calls run: models that are called in every way, sharded beside plain."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import shardlang
from shardlang.api import Program
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.whole import whole


def full(module: Any) -> dict[str, Any]:
    """The state dict, whole."""
    found = module.state_dict().items()
    return {n: x.full_tensor() if hasattr(x, "full_tensor") else x.clone() for n, x in found}


class Net(nn.Module):
    """Batch norm, dropout, a stage that may be frozen, an optional input and two options."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.bn, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.up.requires_grad_(not frozen)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        weight: float = 1.0,
        kind: str | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Shapes `b 6`; rows weighted by `mask` of shape `b`."""
        z = self.down(self.drop(torch.tanh(self.bn(self.up(x)))))
        z = z if mask is None else z * mask[:, None]
        if y is None:
            return {"z": z}
        loss = F.l1_loss(z, y) if kind == "l1" else F.mse_loss(z, y)
        return {"loss": weight * loss, "z": z}


class Replacing(nn.Module):
    """Divides by a running scale, and then replaces it, while autograd holds it."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.register_buffer("scale", torch.linspace(1, 2, 6))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6`."""
        z = self.a(x) * self.scale
        self.scale = 0.9 * self.scale + 0.1 * z.detach().abs().mean(0)
        self.steps += 1
        return {"loss": F.mse_loss(z, y)}


class Drawn(nn.Module):
    """Weights from every generator, and tables that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.a.weight = nn.Parameter(torch.from_numpy(np.random.randn(6, 6)))
        self.a.bias = nn.Parameter(torch.tensor([random.gauss(0, 1) for _ in range(6)]))
        self.tables = [torch.rand(6), torch.from_numpy(np.random.rand(6))]
        self.register_buffer("mask", torch.rand(6), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6`."""
        z = self.a(x * self.tables[0] + self.tables[1]) * self.mask
        return {"loss": F.mse_loss(z, y)}


class TorchDrawn(Drawn):
    """The same from torch's generator alone, which the constructor's record replays."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.a = nn.Linear(6, 6)
        self.tables = [torch.rand(6), torch.rand(6)]
        self.register_buffer("mask", torch.rand(6), persistent=False)


class Unseeded(nn.Module):
    """Draws its weights from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(np.random.default_rng().standard_normal(6)))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6`."""
        return {"loss": F.mse_loss(x * self.w, y)}


class Alike(nn.Module):
    """Gradients that lie oddly: uneven columns, one for two parameters, an expanded one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 5))
        self.a, self.b, self.c = (nn.Parameter(torch.randn(5, 5)) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6`, as many rows as columns of `w`."""
        z = torch.tanh(x @ self.w) + y.sum(1, keepdim=True)
        return {"loss": (z @ (self.a + self.b)).square().mean() + 0.1 * self.c.sum()}


COLUMNS = 'param "w" [_, {axis}]\nparam "a" [_, {axis}]\nparam "b" [_, {axis}]\n'
WHOLE = "mesh {{ tp = {n} }}\ninput x, y : f64[5, 6] [_, _]\n"
DP = "mesh {{ dp = {n} }}\ninput x, y : f64[5, 6] [dp, _]\n"
SPLIT = 'param "up.weight" [tp, _]\nparam "down.weight" [_, tp]\n'
TP = "mesh {{ tp = {n} }}\ninput x, y : f64[5, 6] [_, _]\n" + SPLIT
GRID = "mesh {{ dp = 2 tp = 2 }}\ninput x, y : f64[5, 6] [dp, _]\n" + SPLIT + 'store "**" over dp\n'


Gaps: TypeAlias = "dict[str, float]"


def rows(n: int, seed: int = 0) -> dict[str, Tensor]:
    """A whole batch of n rows, whose rows and columns all differ."""
    made = torch.Generator().manual_seed(seed)
    return {k: torch.randn(n, 6, generator=made, dtype=torch.float64) for k in ("x", "y")}


class Pair:
    """A sharded module and the plain one with the same weights."""

    def __init__(self, text: str, build: Callable[[], nn.Module] = Net, n: int = 1) -> None:
        path = Path(mkdtemp()) / "spec.shard"
        path.write_text(text.format(n=n))
        self.program: Program = shardlang.compile(path, model=lambda: build().double())
        self.module: ShardedModule = self.program.load(seed=1)
        self.run: nn.Module | None = None
        self.plain = build().double()
        self.plain.load_state_dict(full(self.module))

    def both(self) -> tuple[nn.Module, nn.Module]:
        return self.module, self.plain

    def step(self, batch: dict[str, Tensor], **more: Any) -> float:
        """The largest relative difference of the loss, all gradients and all buffers."""
        for model in self.both():
            model.zero_grad()
        torch.manual_seed(3)
        run = self.module if self.run is None else self.run
        mine = run(**self.module.shard_inputs(**batch, **more))["loss"]
        torch.manual_seed(3)
        theirs = self.plain(**batch, **more)["loss"]
        if theirs.requires_grad:
            mine.backward()
            theirs.backward()
        return max(gap(mine.detach(), theirs.detach()), self.gradients(), self.buffers())

    def gradients(self) -> float:
        worst = 0.0
        for leaf, param in held(self.module).tensors():
            if leaf.kind == "param":
                want = self.plain.get_parameter(leaf.name).grad
                assert (want is None) == (param.grad is None), leaf.name
                if want is not None and param.grad is not None:
                    local = getattr(param.grad, "to_local", lambda grad=param.grad: grad)()
                    found = whole(local, leaf.layout, held(self.module).groups)
                    worst = max(worst, gap(found, want))
        return worst

    def buffers(self) -> float:
        mine = full(self.module)
        return max((gap(mine[n], b) for n, b in self.plain.named_buffers() if n in mine), default=0)


def gap(found: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value, if that is more than rounding."""
    found, want = found.detach().double(), want.detach().double()
    return float((found - want).abs().max()) / max(float(want.abs().max()), 1e-3)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """The code and message of the error that a call raises."""
    try:
        call()
    except RunError as error:
        return error.code, f"{error.message} | {error.help}"
    return "", "nothing was raised"


def modes(text: str, n: int) -> Gaps:
    """Training, evaluation, a submodule alone, and back."""
    pair, found = Pair(text, n=n), {}
    found["train"] = pair.step(rows(5))
    for model in pair.both():
        model.eval()
    found["eval"] = pair.step(rows(5))
    found["flags"] = float(any(part.training for m in pair.both() for part in m.modules()))
    with torch.no_grad():
        found["eval without gradients"] = pair.step(rows(5, 1))
    for model in pair.both():
        model.train()
        model.get_submodule("bn").eval()
    found["frozen batch norm"] = pair.step(rows(5, 2))
    for model in pair.both():
        model.train()
    found["train again"] = pair.step(rows(5, 3))
    return found


def sizes(text: str, n: int) -> Gaps:
    """Smaller and larger batches, with and without arguments; the first again."""
    pair = Pair(text, n=n)
    found = {f"{k} rows": pair.step(rows(k, k)) for k in (5, 8, 3, 5)}
    found["weight"] = pair.step(rows(5), weight=3.0)
    found["weight of the default"] = pair.step(rows(5), weight=1.0, kind=None)
    found["string, 7 rows"] = pair.step(rows(7), kind="l1")
    for model in pair.both():
        model.eval()
    x, y = rows(5).values()
    mine = pair.module(**pair.module.shard_inputs(x, y, 2.0))["loss"]
    found["by position"] = gap(mine, pair.plain(x, y, 2.0)["loss"])
    out = pair.module(**pair.module.shard_inputs(x=x))
    found["without an optional input"] = float(list(out) != ["z"])
    return found


def gradients(text: str, n: int) -> Gaps:
    """Gradients of inputs, of what was frozen, of several calls, and of kept graphs."""
    pair, found = Pair(text, lambda: Net(frozen=True), n), {}
    found["frozen"] = pair.step(rows(5))
    for model in pair.both():
        model.requires_grad_(True)
    found["unfrozen"] = pair.step(rows(5, 1))
    for model in pair.both():
        model.get_submodule("down").requires_grad_(False)
    found["frozen after load"] = pair.step(rows(5, 2))
    for count in (5, 7):
        mine, theirs = ({k: v.requires_grad_() for k, v in rows(count).items()} for _ in range(2))
        torch.manual_seed(5)
        pair.module(**pair.module.shard_inputs(**mine))["loss"].backward()
        torch.manual_seed(5)
        pair.plain(**theirs)["loss"].backward()
        for name in mine:
            got, want = mine[name].grad, theirs[name].grad
            assert got is not None and want is not None
            found[f"gradient of {name}, {count} rows"] = gap(got, want)
    return found | _several(pair)


def _several(pair: Pair) -> Gaps:
    """Two calls of different sizes before one backward, twice through a kept graph."""
    for model in pair.both():
        model.zero_grad()
        model.eval()
    for model in pair.both():
        inputs = pair.module.shard_inputs if model is pair.module else dict
        total = model(**inputs(**rows(5)))["loss"] + model(**inputs(**rows(9)))["loss"].square()
        total.backward(retain_graph=True)
        total.backward()
    with torch.inference_mode():
        mine = pair.module(**pair.module.shard_inputs(**rows(6)))["loss"]
        theirs = pair.plain(**rows(6))["loss"]
    after = pair.step(rows(6))
    return {"several calls": pair.gradients(), "inference": gap(mine, theirs), "after it": after}


def replaced(text: str, n: int) -> Gaps:
    """A buffer that is replaced while autograd holds it, for three steps."""
    pair = Pair(text, Replacing, n)
    kept = pair.module.get_buffer("steps")
    found = {f"step {i}": pair.step(rows(5, i)) for i in range(3)}
    found["counted in place"] = float(kept.item() != 3)
    return found


def drawn(text: str, n: int) -> Gaps:
    """Weights and tables from all generators: the plain model's for the same seed, kept states."""
    from shardlang.training.run import plain_trainee

    found = {}
    for build in (Drawn, TorchDrawn):
        pair = Pair(text, build, n)
        before = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
        pair.module = pair.program.load(seed=7)
        after = np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
        pair.plain = plain_trainee(pair.program.compiled, 7).module
        found[f"{build.__name__} generators"] = float(before != after)
        found[build.__name__] = pair.step(rows(5))
        other = plain_trainee(pair.program.compiled, 8).module
        moved = gap(other.get_parameter("a.weight"), pair.plain.get_parameter("a.weight"))
        found[f"{build.__name__} by the seed"] = float(moved < 1e-3)
    return found


def trained(text: str, n: int) -> Gaps:
    """Parameters after steps with accumulation and clipping, by every way to update them."""
    found = {}
    for how in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        pair = Pair(text, Alike, n)
        for model in pair.both():
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5, **how)
            for step in range(3):
                for part in (0, 1):
                    batch = rows(5, 2 * step + part)
                    given = model.shard_inputs(**batch) if model is pair.module else batch
                    model(**given)["loss"].backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
                optimizer.step()
                optimizer.zero_grad()
        mine = full(pair.module)
        for name, param in pair.plain.named_parameters():
            found[f"{how}, {name}"] = gap(mine[name], param)
    return found


def swapped(text: str, n: int) -> Gaps:
    """Averages that are put in the place of the weights for a while, by `data`."""
    pair, found = Pair(text, n=n), {}
    kept = [{name: p.data for name, p in m.named_parameters()} for m in pair.both()]
    for model in pair.both():
        for param in model.parameters():
            average = 1.5 * param.detach()
            param.data = average
            average.mul_(0.5)
    found["averages"] = pair.step(rows(5))
    for model, held_before in zip(pair.both(), kept, strict=True):
        for name, param in model.named_parameters():
            param.data = held_before[name]
    found["restored"] = pair.step(rows(5))
    return found


def changed_between() -> bool:
    """Whether a backward is refused whose forward saw other parameters."""
    module = Pair(TP, n=dist.get_world_size()).module
    shards = module.shard_inputs(**rows(5))
    first, second = (module(**shards)["loss"] for _ in range(2))
    first.backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    try:
        second.backward()
    except RunError as error:
        return error.code == "SH0641" and "` changed between" in error.message
    return False


def right(text: str, n: int, works: Sequence[Callable[[str, int], Gaps]]) -> Gaps:
    """What must be as on one device: differences, by what was tried."""
    return {f"{work.__name__}: {what}": x for work in works for what, x in work(text, n).items()}


def ranks_differ() -> dict[str, tuple[str, str]]:
    """What is refused because the ranks differ."""
    rank, n = dist.get_rank(), dist.get_world_size()
    pair = Pair(DP, n=n)
    module = pair.module
    found = {
        "values": refusal(lambda: module.shard_inputs(**rows(5, rank))),
        "sizes": refusal(lambda: module.shard_inputs(**rows(5 + rank))),
        "replicas": refusal(lambda: Pair(DP, Unseeded, n)),
        "shards": refusal(lambda: Pair(DP + 'store "**" over dp\n', Unseeded, n)),
    }
    shards = module.shard_inputs(**rows(5))
    module.train(rank != 1)
    found["modes"] = refusal(lambda: module(**shards))
    module.train()
    torch.manual_seed(rank)
    found["draws"] = refusal(lambda: module(**shards))
    torch.manual_seed(0)
    module.up.weight.requires_grad_(rank == 0)
    found["frozen"] = refusal(lambda: module(**shards))
    module.up.weight.requires_grad_()
    found["arguments"] = refusal(lambda: module(**shards, weight=float(rank)))
    found["whole inputs"] = refusal(lambda: Pair(TP, n=n).module(**rows(5, rank)))
    found["whole inputs, alike"] = refusal(lambda: Pair(TP, n=n).module(**rows(5)))
    found["unmarked"] = refusal(lambda: module(**rows(5)))
    loss = module(**shards)["loss"]
    params = list(module.parameters())
    found["twice"] = refusal(lambda: torch.autograd.grad(loss, params, create_graph=True))
    return found


def everything() -> dict[str, Any]:
    """One job of 2 processes."""
    gaps = right(DP, 2, (modes, sizes, gradients, replaced, drawn))
    gaps |= {f"tp, {what}": x for what, x in right(TP, 2, (modes, gradients, swapped)).items()}
    for axis, text in (("dp", DP), ("tp", WHOLE)):
        gaps |= right(text + COLUMNS.replace("{axis}", axis), 2, (trained,))
    return {"gaps": gaps, "refused": ranks_differ(), "changed": changed_between()}


def on_a_grid() -> Gaps:
    """One job of 4 processes."""
    return right(GRID, 4, (modes, gradients))
