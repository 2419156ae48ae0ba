"""What the module tests run on every rank: one sharded model, looked at from all sides."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from shardlang.api import Program
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.ir.optimizers import UpdateRule
from shardlang.runtime.groups import Groups, join
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.optim import ShardedOptimizer
from shardlang.runtime.save import Format, save
from shardlang.runtime.trainer.plain import PlainTrainee
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.whole import whole
from shardlang.spec import load_spec
from shardlang.training.recipe import recipe_of
from shardlang.training.run import Run, plain_trainee, sharded_module
from tests.runtime.prepared import prepare_step

HERE = Path(__file__).parent
SEED = 3


@functools.cache
def compiled(name: str = "tiny.shard") -> Compiled:
    """A compiled spec of the tiny model."""
    spec, findings = load_spec(str(HERE / name))
    assert spec is not None, findings
    return compile_spec(spec)


def prepare() -> None:
    """Compile both specs."""
    for name in ("tiny.shard", "short.shard"):
        prepare_step(Program(compiled(name)))


def batch() -> dict[str, Tensor]:
    """One whole batch."""
    made = torch.Generator().manual_seed(1)
    return {name: torch.randint(0, 11, (5, 4), generator=made) for name in ("ids", "labels")}


def everything() -> dict[str, Any]:
    """All results, by name; rank 0 adds those of the plain model."""
    found = compiled()
    groups = join(found.program.mesh, timeout_s=30)
    module = sharded_module(found, groups, SEED)
    results: dict[str, Any] = {
        "start": full(module),
        "names": list(module.state_dict()),
    }
    results |= _forward(module) | _gradients(module, groups)
    results |= _checkpoints(module, Path(os.environ["SCRATCH"])) | _compiled(module)
    results["training"] = _training(found, groups)
    short = compiled("short.shard")
    results["short"] = _training(short, groups, steps=10)
    if groups.rank == 0:
        results["plain"] = _plain(found) | {"short": _reference(short, steps=10)}
    return results


def full(module: ShardedModule) -> dict[str, Tensor]:
    """A copy of the state dict, whole."""
    found = ((name, value.full_tensor()) for name, value in module.state_dict().items())
    return {name: value.clone() for name, value in found}


def _forward(module: ShardedModule) -> dict[str, Any]:
    out = module(**module.shard_inputs(**batch()))
    out["loss"].backward()
    return {
        "structure": {name: type(value).__name__ for name, value in out.items()},
        "loss": out["loss"].detach(),
        "logits": out["extra"][0].full_tensor().detach(),
        "norm": _norm(module),
        "calls": module.get_buffer("blocks.1.calls").full_tensor(),
    }


def _norm(module: ShardedModule) -> torch.Tensor:
    optimizer = ShardedOptimizer(module, UpdateRule("sgd"))
    optimizer.load()
    return optimizer.norm()


def _gradients(module: ShardedModule, groups: Groups) -> dict[str, Any]:
    grads = {
        leaf.name: whole(x.grad, leaf.layout, groups)
        for leaf, x in held(module).tensors()
        if x.grad is not None
    }
    tied = module.get_parameter("head.weight") is module.get_parameter("embed.weight")
    return {"grads": grads, "tied": tied}


def _checkpoints(module: ShardedModule, folder: Path) -> dict[str, Any]:
    """Write, spoil and read back, through both kinds of checkpoints."""
    before = full(module)
    files = save(module, folder / "weights", Format(file_bytes=200))
    dcp.save(module.state_dict(), checkpoint_id=folder / "dcp")
    same = {}
    _spoil(module)
    dcp.load(module.state_dict(), checkpoint_id=folder / "dcp")
    same["dcp"] = _equal(full(module), before)
    _spoil(module)
    module.load_state_dict(before)
    same["full"] = _equal(full(module), before)
    return {"checkpoints": same, "files": [file.name for file in files]}


def _spoil(module: ShardedModule) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _compiled(module: ShardedModule) -> dict[str, Any]:
    """The loss of the module under torch.compile."""
    run = torch.compile(module, backend="aot_eager")
    module.zero_grad()
    out = run(**module.shard_inputs(**batch()))
    out["loss"].backward()
    return {"compiled": (out["loss"].detach(), _norm(module))}


def _training(found: Compiled, groups: Groups, steps: int = 4) -> list[Record]:
    module = sharded_module(found, groups, SEED)
    return Run(found, recipe_of(found, steps, SEED)).sharded(module, list)


def _reference(found: Compiled, steps: int = 4) -> list[Record]:
    return Run(found, recipe_of(found, steps, SEED)).reference(list)


def _plain_norm(trainee: PlainTrainee) -> torch.Tensor:
    optimizer = trainee.optimizer(UpdateRule("sgd"))
    optimizer.load()
    return optimizer.norm()


def _plain(found: Compiled) -> dict[str, Any]:
    trainee = plain_trainee(found, SEED)
    start = {name: value.clone() for name, value in trainee.module.state_dict().items()}
    out = trainee.module(**batch())
    out["loss"].backward()
    params = trainee.module.named_parameters()
    return {
        "start": start,
        "loss": out["loss"].detach(),
        "logits": out["extra"][0].detach(),
        "grads": {name: param.grad for name, param in params},
        "norm": _plain_norm(trainee),
        "training": _reference(found),
    }
