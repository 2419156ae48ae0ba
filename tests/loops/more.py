"""Habits that docs/your-own-loop.md does not show, on the sharded model beside the plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import page
import torch
from torch import Tensor, nn

import shardlang
from shardlang.runtime.errors import RunError

Habit = Callable[[Any, list[Any]], Any]
"""From the model and batches to results; the weights and gradients are compared too."""


def _sgd(model: Any, **settings: float) -> torch.optim.SGD:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, **{"lr": 0.1, **settings})


def _train(model: Any, batches: list[Any], optimizer: Any) -> None:
    for batch in batches:
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def hooks_on_gradients(model: Any, batches: list[Any]) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    handles = [p.register_hook(lambda g: g / (g.norm() + 1)) for p in trained]
    _train(model, batches[:1], _sgd(model))
    for handle in handles:
        handle.remove()
    model(**batches[1])["loss"].backward()


def groups_changed_in_the_middle(model: Any, batches: list[Any]) -> None:
    optimizer = torch.optim.AdamW([model.up.weight], lr=1e-2)
    _train(model, batches[:1], optimizer)
    optimizer.add_param_group({"params": [model.groups.weight, model.norm.bias], "lr": 3e-2})
    optimizer.param_groups[0]["lr"] = 1e-3
    _train(model, batches[1:3], optimizer)


def layers_frozen_in_the_middle(model: Any, batches: list[Any]) -> list[bool]:
    _train(model, batches[:1], _sgd(model))
    model.groups.requires_grad_(False)
    model.frozen.requires_grad_(True)
    _train(model, batches[1:2], _sgd(model))
    model.groups.requires_grad_(True)
    model(**batches[2])["loss"].backward()
    return [p.grad is None for p in model.parameters()]


def gradients_by_hand(model: Any, batches: list[Any]) -> Tensor:
    """Two losses whose conflict is taken out, and an update without an optimizer."""
    trained = [p for p in model.parameters() if p.requires_grad]
    out = model(**batches[0])
    ones = torch.autograd.grad(out["loss"], trained, retain_graph=True)
    others = torch.autograd.grad(out["logits"].square().mean(), trained)
    dot = sum((a * b).sum() for a, b in zip(ones, others, strict=True))
    size = sum((b * b).sum() for b in others)
    with torch.no_grad():
        for p, a, b in zip(trained, ones, others, strict=True):
            p -= 0.1 * (a - dot / size * b)
    assert isinstance(dot, Tensor)
    return dot


def weights_standardized_by_call(model: Any, batches: list[Any]) -> None:
    weight = model.up.weight
    standard = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
    torch.func.functional_call(model, {"up.weight": standard}, (), batches[0])["loss"].backward()


def checkpointed(model: Any, batches: list[Any]) -> None:
    def forward(batch: Any) -> Tensor:
        loss: Tensor = model(**batch)["loss"]
        return loss

    torch.utils.checkpoint.checkpoint(forward, batches[0], use_reentrant=False).backward()
    with torch.autograd.graph.save_on_cpu():
        loss = forward(batches[1])
    loss.backward()


class Outer(nn.Module):
    """A plain module around the model, which shares a parameter with it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.shared = model, model.embed.weight
        torch.manual_seed(3)
        self.extra = nn.Linear(11, 2).double()

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """As the model's."""
        out = self.model(**batch)
        beside = self.extra(out["logits"]).square().mean() + self.shared.square().mean()
        return {"loss": out["loss"] + beside}


def a_parameter_shared_with_a_plain_module(model: Any, batches: list[Any]) -> Tensor:
    outer = Outer(model)
    _train(outer, batches[:2], torch.optim.AdamW(outer.parameters(), lr=1e-2))
    return outer.extra.weight


def averages_in_bfloat16(model: Any, batches: list[Any]) -> list[Tensor]:
    averages = [p.detach().to(torch.bfloat16) for p in model.parameters()]
    for batch in batches[:2]:
        _train(model, [batch], _sgd(model))
        for average, p in zip(averages, model.parameters(), strict=True):
            average.lerp_(p.detach().to(torch.bfloat16), 0.5)
    return averages


def sharpness_aware(model: Any, batches: list[Any]) -> None:
    optimizer = _sgd(model)
    model(**batches[0])["loss"].backward()
    found = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    norm = torch.stack([grad.norm() for _, grad in found]).norm()
    steps = [(p, grad * (0.05 / norm)) for p, grad in found]
    with torch.no_grad():
        for p, step in steps:
            p.add_(step)
        optimizer.zero_grad()
        with torch.enable_grad():
            model(**batches[0])["loss"].backward()
        for p, step in steps:
            p.sub_(step)
    optimizer.step()


def noise_and_masks(model: Any, batches: list[Any]) -> None:
    model(**batches[0])["loss"].backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad += 0.01 * torch.randn_like(p.grad)
    _sgd(model).step()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(p.abs() > p.abs().mean())


def a_copy_trained_beside(model: Any, batches: list[Any]) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    _train(model, batches[:1], optimizer)
    other, others = copy.deepcopy((model, optimizer))
    _train(model, batches[1:2], optimizer)
    _train(other, batches[2:3], others)
    return list(other.parameters())


def a_search_for_the_rate(model: Any, batches: list[Any]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 3.0**step)
    losses = []
    for batch in batches:
        losses.append(model(**batch)["loss"].item())
        _train(model, [batch], optimizer)
        scheduler.step()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    _train(model, batches[:1], optimizer)
    return losses


def uneven_batches_added_up(model: Any, batches: list[Any]) -> None:
    for batch in batches:
        (model(**batch)["loss"] * batch["ids"].shape[0] / 21).backward()


def a_step_within_the_backward(model: Any, batches: list[Any]) -> None:
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters() if p.requires_grad}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    for batch in batches[:2]:
        model(**batch)["loss"].backward()


def outputs_detached(model: Any, batches: list[Any]) -> Tensor:
    seen = model(**batches[0])["logits"].detach().requires_grad_()
    nn.functional.cross_entropy(seen.flatten(0, 1), batches[0]["labels"].flatten()).backward()
    model(**batches[0])["logits"].backward(seen.grad)
    with torch.inference_mode():
        chances: Tensor = model(**batches[1])["logits"].softmax(-1)
    return chances.clone()


HABITS: tuple[Habit, ...] = (
    hooks_on_gradients, groups_changed_in_the_middle, layers_frozen_in_the_middle,
    gradients_by_hand, weights_standardized_by_call, checkpointed,
    a_parameter_shared_with_a_plain_module, averages_in_bfloat16, sharpness_aware, noise_and_masks,
    a_copy_trained_beside, a_search_for_the_rate, uneven_batches_added_up,
    a_step_within_the_backward, outputs_detached,
)  # fmt: skip


def gaps(module: Any, plain: nn.Module, whole: list[Any]) -> dict[str, float]:
    """The largest difference for every habit; the last batches are shorter."""
    whole = [*whole[:2], *({n: x[:rows] for n, x in whole[2].items()} for rows in (4, 5))]
    mine = [module.shard_inputs(**batch) for batch in whole]
    return {h.__name__: page.gap(_left(h, module, mine), _left(h, plain, whole)) for h in HABITS}


def _left(habit: Habit, model: nn.Module, batches: list[Any]) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    found = habit(model, batches)
    grads = {name: p.grad for name, p in model.named_parameters()}
    return dict(page.flat([found, model.state_dict(), grads]))


def memory(module: Any, batch: Any) -> dict[str, bool]:
    """Whether gradients have memory of their own: autograd hands one to both terms of a sum."""
    model = copy.deepcopy(module)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**batch)["loss"].backward()
        return _shards_of_gradients(model)

    total = model.norm.weight.to_local() + model.norm.bias.to_local()
    total.sin().sum().backward()
    both = _places(_shards_of_gradients(model))
    first = gradients()
    kept = {name: grad.clone() for name, grad in first.items()}
    first["norm.weight"].fill_(7.0)
    others = (torch.equal(kept[name], first[name]) for name in kept if name != "norm.weight")
    apart = len(both) == 2 and len(_places(first)) == len(first)
    found = {"apart": apart, "others": all(others)}
    found["again"] = page.gap(gradients(), kept) < 1e-12
    model.zero_grad()
    shard = model.norm.weight.to_local()
    given = torch.ones_like(shard)
    shard.backward(given)
    model.norm.weight.grad.zero_()
    return {**found, "given": bool(given.all())}


def _shards_of_gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.to_local() for n, p in model.named_parameters() if p.grad is not None}


def _places(tensors: dict[str, Tensor]) -> set[int]:
    """Where they lie; gradients that were reduced together may lie in one storage."""
    return {x.data_ptr() for x in tensors.values()}


class Hidden(nn.Module):
    """Gives a value that stays whole, and goes on with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `5 4`."""
        hidden = self.a(x)
        y = self.c(torch.tanh(self.b(hidden)))
        return {"hidden": hidden, "y": y, "loss": y.square().mean()}


HIDDEN = """mesh {{ tp = {n} }}
input x : f64[5, 4] [_, _]
param "b.{{weight,bias}}" [tp, ...]
param "c.weight"          [_, tp]
"""


def hidden(folder: Path, n: int) -> dict[str, Any]:
    """A gradient that reaches a whole output from without alone, and one that does from within."""
    path = folder / "hidden.shard"
    path.write_text(HIDDEN.format(n=n))
    module = shardlang.compile(path, model=lambda: Hidden().double()).load(seed=2)
    batch = module.shard_inputs(x=torch.linspace(-1, 2, 20, dtype=torch.float64).view(5, 4).sin())
    out = module(**batch)
    out["loss"] /= 2
    (out["loss"] + out["hidden"].sin().sum()).backward()
    return {
        "hook": said(module, batch, "hidden", lambda x: x.register_hook(lambda g: g * 2)),
        "retained": said(module, batch, "hidden", lambda x: x.retain_grad()),
        "last": said(module, batch, "loss", lambda x: x.retain_grad()),
    }


def said(module: Any, batch: Any, name: str, act: Callable[[Any], object]) -> tuple[str, str]:
    """What a backward from the loss says of what was done to an output."""
    out = module(**batch)
    act(out[name])
    try:
        out["loss"].backward()
    except RunError as error:
        return error.code, f"{error.message} | {error.help}"
    return "", ""
