"""Training with everything that `store` may split, on gloo processes.

Their programs are compiled apart, as in a real job: ranks differ in the order of their sets, and
yet hold the same programs.
"""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import stored
import torch
from counts_on_ranks import Counted, counted, programs
from torch import Tensor

import shardlang
from shardlang.api import Program
from shardlang.runtime.errors import RunError
from shardlang.runtime.optim import ShardedOptimizer
from shardlang.runtime.whole import held_shard
from tests.runtime.prepared import prepare_step

DATA = "input ids, labels : i64[8] [{axes}]\n"
SPECS = {
    "ddp": ("mesh { dp = 4 }", "dp", ""),
    "optimizer": ("mesh { dp = 4 }", "dp", 'store optimizer "**" over dp'),
    "gradients": ("mesh { dp = 4 }", "dp", 'store gradients "**" over dp'),
    "value": ("mesh { dp = 4 }", "dp", 'store "**" over dp'),
    "regather": ("mesh { dp = 4 }", "dp", 'store "**" over dp regather'),
    "hybrid": ("mesh { r = 2 s = 2 }", "r*s", 'store "**" over s'),
    "hybrid, gradients": ("mesh { r = 2 s = 2 }", "r*s", 'store gradients "**" over s'),
    "two axes": ("mesh { r = 2 s = 2 }", "r*s", 'store optimizer "**" over r*s'),
    "accumulated": ("mesh { dp = 4 }", "dp", "accumulate 2"),
    "accumulated, optimizer": (
        "mesh { dp = 2 }",
        "dp",
        'accumulate 4 store optimizer "**" over dp',
    ),
    "accumulated, hybrid": (
        "mesh { r = 2 s = 2 }",
        "r*s",
        'accumulate 2 store gradients "blocks.**" over s store "{embed,head}.*" over r*s regather',
    ),
    "by pattern": (
        "mesh { dp = 4 }",
        "dp",
        'store "**" over dp store gradients "blocks.*.up.*" over dp'
        ' store optimizer "embed.*" over dp',
    ),
    "tensor parallel": (
        "mesh { dp = 2 tp = 2 }",
        "dp",
        'param "**.up.*" [tp, ...] param "**.down.weight" [_, tp] store gradients "**" over dp',
    ),
}
"""Mesh, axes of the batch, and what is stored."""

TRAINED = [
    name for name in SPECS if name not in ("value", "hybrid", "two axes", "accumulated, optimizer")
]
"""Those that are trained; the others are only proven."""

FEW = ("ddp", "optimizer", "gradients", "regather", "accumulated, hybrid")
"""Those that `make test` trains: ZeRO 0 to 3, and all of it together."""

STEPS = 20


def batch(step: int) -> dict[str, Tensor]:
    """Rows that the axes split; labels that are left out, unevenly."""
    given = torch.Generator().manual_seed(step)
    ids, labels = torch.randint(0, 7, (2, 8), generator=given)
    labels[: 1 + step % 3] = -100
    return {"ids": ids, "labels": labels}


@functools.cache
def program(name: str, build: Any = stored.stacked) -> Program:
    """A spec on a model."""
    mesh, axes, store = SPECS[name]
    text = f"{mesh}\n{DATA.format(axes=axes)}{store}\noptimizer adamw(lr = 0.02, clip = 0.5)\n"
    return shardlang.compile(_written(text), model=build)


def _written(text: str) -> Path:
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(text)
    return path


def prepare() -> None:
    """Compile what is trained, and what is counted."""
    for name in names():
        prepare_step(program(name))
    for one in programs().values() if "ddp" in names() else ():
        prepare_step(one)


def names() -> list[str]:
    """The specs of this job."""
    return os.environ["NAMES"].split("; ")


def trained() -> dict[str, Any]:
    """The losses of every spec, the parameters at the end, and what lies on this rank."""
    found: dict[str, Any] = {}
    for name in names():
        made = program(name)
        module, optimizer = made.load(), made.optimizer()
        losses, at_rest = [], (0, 0, 0)
        for step in range(STEPS):
            if "accumulate" in name:
                losses.append(torch.tensor(made.step(batch(step)).loss, dtype=torch.float64))
                continue
            loss = module(**module.shard_inputs(**batch(step)))["loss"]
            loss.backward()
            at_rest = _bytes(module, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        whole = {n: p.full_tensor().detach() for n, p in module.named_parameters()}
        states = {
            n: optimizer.state[p]["exp_avg"].full_tensor()
            for n, p in module.named_parameters()
            if p.dim()
        }
        found[name] = torch.stack(losses), whole, states, at_rest
    return found


def _bytes(module: torch.nn.Module, optimizer: ShardedOptimizer) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and states on this rank."""
    params = [p for p in module.parameters() if p.requires_grad]
    states = [x for p in params for x in optimizer.state[p].values() if x.dim()]
    kinds = params, [p.grad for p in params if p.grad is not None], states
    first, second, third = (
        sum(held_shard(x).numel() * x.element_size() for x in kind) for kind in kinds
    )
    return first, second, third


def by_hand() -> dict[str, Any]:
    """What a loop of one's own meets: states saved and loaded, gradients by hand, refusals."""
    made = program("gradients")
    module, optimizer = made.load(), made.optimizer()
    found: dict[str, Any] = {"first": [made.step(batch(i)).loss for i in range(2)]}
    held = {n: x.full_tensor().clone() for n, x in module.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    found["then"] = [made.step(batch(i)).loss for i in range(2, 4)]
    module.load_state_dict(held)
    optimizer.load_state_dict(state)
    found["again"] = [made.step(batch(i)).loss for i in range(2, 4)]
    plain = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(**module.shard_inputs(**batch(0)))["loss"].backward()
    try:
        plain.step()
    except RunError as error:
        found["refused"] = error.code
    try:
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    except RunError as error:
        found["added"] = error.code
    popped = optimizer.param_groups[0]["params"].pop()
    try:
        optimizer.step()
    except RunError as error:
        found["popped"] = error.code
    optimizer.param_groups[0]["params"].append(popped)
    total = torch.nn.utils.clip_grad_norm_(module.parameters(), 1e9)
    optimizer.load()
    found["norms"] = float(total), float(optimizer.norm())
    module.zero_grad()
    compiled = torch.compile(module, backend="aot_eager")
    shards = module.shard_inputs(**batch(5))
    module(**shards)["loss"].backward()
    want = {n: p.grad.full_tensor().clone() for n, p in module.named_parameters()}
    module.zero_grad()
    compiled(**shards)["loss"].backward()
    gaps = [(p.grad.full_tensor() - want[n]).abs().max() for n, p in module.named_parameters()]
    found["compiled"] = float(max(gaps))
    made = program("accumulated")
    made.load()
    found["longer"] = [made.step(longer()).loss, made.step(batch(1)).loss]
    return found


def longer() -> dict[str, Tensor]:
    """A batch of another size than declared, which does not divide into microbatches alike."""
    ids, labels = torch.randint(0, 7, (2, 11), generator=torch.Generator().manual_seed(5))
    return {"ids": ids, "labels": labels}


def everything() -> tuple[dict[str, Any], dict[str, Any], Counted]:
    """One job of four processes; with `ddp`, all else that is to be seen."""
    if "ddp" in names():
        return trained(), by_hand(), counted()
    return trained(), {}, {}
