"""Losses and metrics computed outside the model, from its outputs and the batch, on every rank."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import page
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shardlang
from shardlang.runtime.errors import RunError

Loss = Callable[[Any, Any, nn.Linear], Tensor]


def _cross_entropy(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    return F.cross_entropy(out["logits"].flatten(0, 1), batch["labels"].flatten())


def _mse(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    return F.mse_loss(out["logits"], batch["labels"][..., None].double().expand(-1, -1, 11))


def _bce(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    chosen = F.one_hot(batch["labels"], 11).double()
    rows = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None, None]
    return F.binary_cross_entropy_with_logits(out["logits"], chosen, weight=rows)


def _by_hand(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    logs = out["logits"].log_softmax(-1)
    picked = -logs.gather(-1, batch["labels"][..., None]).squeeze(-1)
    return (picked * (batch["labels"] != 3)).sum() / (batch["labels"] != 3).sum()


def _two(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    return out["loss"] + 0.3 * _cross_entropy(out, batch, head) + out["logits"].pow(2).mean()


def _head(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    return head(torch.tanh(out["logits"])).sin().square().sum() + head.weight.norm()


def _sequence(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    """Shifted by one, in place, a part of it left out, gathered by hand beside."""
    scaled = out["logits"] / 2
    scaled *= batch["ids"][..., None] + 1
    shifted = F.cross_entropy(scaled[:, :-1].transpose(1, 2), batch["labels"][:, 1:])
    whole = getattr(out["logits"], "full_tensor", lambda: out["logits"])()
    return shifted + (whole * out["logits"]).abs().mean() + whole.std()


def _same_shape(out: Any, batch: Any, head: nn.Linear) -> Tensor:
    """A plain parameter of the output's shape, whose gradient comes from shards."""
    return (out["logits"] * head.weight.sum(0).expand(6, 5, 11)).exp().mean() + head(
        out["logits"]
    ).mean()


LOSSES: tuple[Loss, ...] = (
    _cross_entropy, _mse, _bce, _by_hand, _two, _head, _sequence, _same_shape,
)  # fmt: skip


def gaps(module: nn.Module, plain: nn.Module, whole: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The largest difference of the loss and all gradients, for every loss; and of metrics."""
    cut: Callable[..., Any] = module.shard_inputs  # type: ignore[assignment]
    found: dict[str, Any] = {
        loss.__name__: page.gap(_step(loss, module, cut(**batch)), _step(loss, plain, batch))
        for loss, batch in zip(LOSSES, whole * 2, strict=True)
    }
    found["metrics"] = page.gap(_metrics(module, cut(**whole[0])), _metrics(plain, whole[0]))
    found["shards"] = _on_shards(module, plain, whole[0])
    found["twice"] = float(_twice(module, cut(**whole[0])) != "SH0613")
    found["whole shapes"] = float(cut(**whole[0])["ids"].shape != (6, 5))
    return found


def _step(loss: Loss, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    torch.manual_seed(4)
    head = nn.Linear(11, 3).double()
    value = loss(model(**batch), batch, head)
    value.backward()  # type: ignore[no-untyped-call]
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return dict(page.flat([value.detach(), grads, [p.grad for p in head.parameters()]]))


@torch.no_grad()
def _metrics(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    logits = copy.deepcopy(model)(**batch)["logits"]
    right = logits.argmax(-1) == batch["labels"]
    same = torch.equal(logits, logits.clone()) and not torch.equal(logits, logits.abs())
    best = logits.topk(2).indices
    return dict(
        page.flat(
            [right.double().mean().item(), right.sum(), best, logits.max(), same, len(logits),
             logits.numpy().sum().item(), logits[batch["ids"] > 4].double().mean(), logits.shape]
        )
    )  # fmt: skip


def _on_shards(module: nn.Module, plain: nn.Module, batch: dict[str, Tensor]) -> float:
    """What is done to each element can be done to the shards; then the shares are added up."""
    module, plain = copy.deepcopy(module), copy.deepcopy(plain)
    out = module(**module.shard_inputs(**batch))["logits"]  # type: ignore[operator]
    if not hasattr(out, "to_local"):
        return float("inf")
    out.to_local().pow(3).sum().backward()
    plain(**batch)["logits"].pow(3).sum().backward()
    mine, theirs = ({n: p.grad for n, p in m.named_parameters()} for m in (module, plain))
    return page.gap(dict(page.flat(mine)), dict(page.flat(theirs)))


def _twice(module: nn.Module, batch: Any) -> str:
    """The code of a second derivative through the border."""
    params = [p for p in module.parameters() if p.requires_grad]
    try:
        loss = module(**batch)["logits"].square().sum()
        torch.autograd.grad(loss, params, create_graph=True)
    except RunError as error:
        return error.code
    return ""


class Cached(nn.Module):
    """Adds what an earlier call has given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, past: Tensor) -> dict[str, Tensor]:
        """Shapes `b 4`, and `4 4`, which is whole on every device."""
        seen = torch.tanh(self.a(x) + past)
        return {"seen": seen, "across": seen.t() @ x}


CACHED = """mesh {{ dp = {n} }}
input x, past : f64[4, 4] [dp, _]
param "a.{{weight,bias}}" [dp, ...]
"""


def cached(folder: Any, n: int) -> float:
    """Calls that take outputs of the last: as they lie, lying otherwise, and cut anew."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cached.shard").write_text(CACHED.format(n=n))
    program = shardlang.compile(folder / "cached.shard", model=lambda: Cached().double())
    module = program.load(seed=2)
    plain = Cached().double()
    plain.load_state_dict(
        {
            k: x.full_tensor() if hasattr(x, "full_tensor") else x
            for k, x in module.state_dict().items()
        }
    )
    return page.gap(_chain(module), _chain(plain))


def _chain(model: nn.Module) -> dict[str, Tensor]:
    given = torch.linspace(-1, 2, 16, dtype=torch.float64).view(4, 4).sin()
    cut: Callable[..., Any] = getattr(model, "shard_inputs", dict)
    batch = cut(x=given, past=given.flip(0))
    out = model(**batch)
    out = model(x=batch["x"], past=out["seen"])
    out = model(x=batch["x"], past=out["seen"].t())
    again = model(**cut(x=out["seen"], past=out["across"]))
    loss = (out["seen"] * again["across"]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return dict(page.flat([loss.detach(), {n: p.grad for n, p in model.named_parameters()}]))


def all_gaps(modules: list[Any], whole: Any, twin: Any, folder: Any) -> list[dict[str, Any]]:
    """For every mesh; the chain of calls once."""
    found = [gaps(module, twin(module), whole) for module in modules]
    found.append({"cached": cached(folder, torch.distributed.get_world_size())})
    return found
