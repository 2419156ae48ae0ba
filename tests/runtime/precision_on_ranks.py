"""Training in the types that a spec states, on two gloo processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import precise
import torch
from counts_on_ranks import Boundary
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import shardlang
from shardlang.api import Program
from shardlang.cost.live import peak_bytes
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule
from shardlang.runtime.optim import ShardedOptimizer
from tests.cost.measured import measured_peak, step_of

STEPS = 5
CASES = {
    "bf16": (precise.bf16, "precision { master = f32 reduce = f32 }"),
    "bf16, accumulated": (
        precise.bf16,
        'precision { master = f32 reduce = f32 } accumulate 3 store gradients "**" over dp',
    ),
    "f16": (precise.f16, "precision { master = f32 reduce = f32 loss_scale = dynamic }"),
    "f16, stored": (
        precise.f16,
        'precision { master = f32 reduce = f32 loss_scale = dynamic } store "**" over dp',
    ),
    "f16, accumulated": (
        precise.f16,
        "precision { master = f32 reduce = f32 loss_scale = dynamic } accumulate 3"
        ' store optimizer "**" over dp',
    ),
    "f32, in bf16": (precise.f32, 'precision { compute = bf16 } store "**" over dp regather'),
    "f32, in f16": (
        precise.f32,
        "precision { compute = f16 loss_scale = dynamic } accumulate 3"
        ' store gradients "**" over dp',
    ),
}
"""The model, and what is stated."""


TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """That of the parameters."""
    return TYPES[name.split(",")[0]]


def computes(name: str) -> torch.dtype:
    """That in which the model computes."""
    return TYPES[name.rpartition("in ")[2].split(",")[0]]


def program(name: str) -> Program:
    """A spec on its model."""
    model, stated = CASES[name]
    path = Path(mkdtemp()) / "spec.shard"
    kind = name.split(",")[0]
    head = f"mesh {{ dp = 2 }}\ninput x : {kind}[{precise.ROWS}, 9] [dp, _]\n"
    path.write_text(f"{head}{stated}\noptimizer adamw(lr = 0.01, clip = 0.5)\n")
    return shardlang.compile(path, model=model)


def trained(name: str) -> dict[str, Any]:
    """The losses, the skipped steps, and the parameters and factors after every step."""
    made = program(name)
    module, optimizer = made.load(), made.optimizer()
    found: dict[str, Any] = {"losses": [], "skipped": [], "params": [], "scales": []}
    for step in range(STEPS):
        with Boundary() as boundary:
            done = made.step(precise.batch(step, dtype_of(name)))
        found["sent"] = [bytes_ for *_, bytes_ in boundary.sent]
        found["losses"].append(done.loss)
        found["skipped"].append(done.skipped)
        found["params"].append([p.full_tensor().detach() for p in module.parameters()])
        found["scales"].append(optimizer.param_groups[0].get("loss_scale"))
    masters = [optimizer.state[p].get("master", p) for p in module.parameters()]
    found["masters"] = [x.full_tensor().detach() for x in masters]
    with torch.no_grad():
        given = module.shard_inputs(**precise.batch(0, dtype_of(name)))
        found["then"] = module(**given)["loss"].item()
    if "accumulate" not in CASES[name][1]:
        found["peak"] = peak_bytes(step_of(made)), measured_peak(program(name), 2)
    return found


def mixed(module: ShardedModule, optimizer: ShardedOptimizer) -> dict[str, str]:
    """What is said of losses that are scaled in part, or not as a loss is."""

    def loss() -> torch.Tensor:
        made = module(**module.shard_inputs(**precise.batch(0, torch.float16)))
        found: torch.Tensor = made["loss"]
        return found

    def dropped() -> None:
        optimizer.scale(loss())
        loss().backward()

    def one_of_two() -> None:
        optimizer.scale(loss()).backward()
        loss().backward()

    def let_go() -> None:
        loss().backward()
        module.zero_grad()
        (optimizer.scale(loss()) + optimizer.scale(loss())).backward()

    cases: dict[str, Callable[[], object]] = {
        "dropped": dropped,
        "one of two": one_of_two,
        "let go": let_go,
        "twice": lambda: optimizer.scale(optimizer.scale(loss())),
        "number": lambda: optimizer.scale(1.0),  # type: ignore[arg-type]
    }
    found = {}
    for name, case in cases.items():
        optimizer.zero_grad()
        try:
            case()
            optimizer.step()
            found[name] = ""
        except RunError as error:
            found[name] = str(error)
    optimizer.zero_grad()
    return found


def by_hand() -> dict[str, Any]:
    """A loop of one's own: it scales its loss, saves and loads the factor, or is refused."""
    made = program("f16")
    module, optimizer = made.load(), made.optimizer()
    found: dict[str, Any] = {"losses": [], "params": []}
    for step in range(STEPS):
        given = module.shard_inputs(**precise.batch(step, torch.float16))
        loss = module(**given)["loss"]
        optimizer.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(loss.item())
    found["params"] = [p.full_tensor().detach() for p in module.parameters()]
    found["saved"] = copy.deepcopy(optimizer.state_dict())["param_groups"][0]["loss_scale"]
    other = program("f16")
    fresh, loaded = other.load(), other.optimizer()
    get_optimizer_state_dict(fresh, loaded)
    loaded.load_state_dict(optimizer.state_dict())
    found["loaded"] = loaded.next_scale()
    found["mixed"] = mixed(module, optimizer)
    module(**module.shard_inputs(**precise.batch(0, torch.float16)))["loss"].backward()
    plain = torch.optim.AdamW(module.parameters(), lr=0.1)
    for name, one in (("unscaled", optimizer), ("plain", plain)):
        try:
            one.step()
        except RunError as error:
            found[name] = error.code
    return found


def everything() -> tuple[dict[str, Any], dict[str, Any]]:
    """One job."""
    return {name: trained(name) for name in CASES}, by_hand()
