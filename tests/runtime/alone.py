"""Calls that one rank alone refuses, and calls under `torch.compile`, for the tests of calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.distributed as dist
from called import DP, Gaps, Pair, gap, refusal, rows
from torch import Tensor, nn
from torch.distributed.tensor import Replicate

from shardlang.api import Program
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.save import save


def refused_by_one() -> dict[str, tuple[str, str]]:
    """What rank 1 alone cannot do, as every rank says it."""
    mine = dist.get_rank() == 1
    pair = Pair(DP, n=2)
    module, shards = pair.module, pair.module.shard_inputs(**rows(5))
    elsewhere = {**shards, "y": shards["y"].redistribute(placements=[Replicate()])}
    variants = held(module).variants
    found = {
        "fits on one": refusal(lambda: module(**rows(2))),
        "object": refusal(lambda: module(**shards, kind=object() if mine else None)),
        "unknown": refusal(lambda: module.shard_inputs(**rows(5), **({"w": 2.0} if mine else {}))),
        "work": refusal(lambda: variants._agreement.together(lambda: [0][int(mine)])),
        "lies": refusal(lambda: module(**(shards if mine else elsewhere))),
        "gradients": refusal(lambda: _switched(mine, lambda: module(**shards))),
    }
    found |= _changed_on_one(module, shards, mine)
    compiler: Any = variants.compiler
    compiler.make = _failing if mine else compiler.make
    found["new program"] = refusal(lambda: module.shard_inputs(**rows(8)))
    del compiler.__dict__["make"]
    found["weights"] = refusal(lambda: _truncated(mine).load())
    found["after"] = ("", str(pair.step(rows(8)) < 1e-10))
    return found


def _changed_on_one(
    module: ShardedModule, shards: dict[str, Any], mine: bool
) -> dict[str, tuple[str, str]]:
    found = {}
    weight, module.bn.eps = module.up.weight, 0.5 if mine else 1e-5
    found["setting"] = refusal(lambda: module(**shards))
    compiled = torch.compile(module, backend="eager")
    found["setting, compiled"] = refusal(lambda: compiled(**shards))
    found["saved"] = refusal(lambda: save(module, Path(mkdtemp())))
    module.bn.eps = 1e-5
    if mine:
        module.up.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.float64))
    found["parameter"] = refusal(lambda: module(**shards))
    module.up.weight = weight
    return found


def _switched(on: bool, call: Callable[[], object]) -> object:
    with torch.set_grad_enabled(on):
        return call()


def _truncated(mine: bool) -> Program:
    """A program whose checkpoint one rank cannot read."""
    program = Pair(DP, n=2).program
    if mine:
        folder = Path(mkdtemp())
        (folder / "model.safetensors").write_bytes(b"cut off")
        program.compiled.source.checkpoint = folder
    return program


def _failing(*_: Any) -> Any:
    raise MemoryError("no room")


def _outside(out: dict[str, Tensor], y: Tensor) -> Tensor:
    """A loss and a metric that are made of a split output."""
    right = (out["z"].argmax(-1) == y.argmax(-1)).double().mean()
    return out["loss"] + out["z"].cumsum(0).sin().sum() + right


REGATHERED = DP + 'store "**" over dp regather\n'


def compiled() -> Gaps:
    """Values, metrics and gradients under `torch.compile`, in both modes and two sizes."""
    pair = Pair(DP, n=2)
    run = torch.compile(pair.module, backend="aot_eager")
    found = {}
    for train, count in ((True, 5), (False, 5), (False, 7)):
        for model in pair.both():
            model.train(train)
        found[f"{train}, {count}"] = _gap(run, pair, rows(count, count))
    torch.compiler.reset()
    step = torch.compile(lambda x, y: _outside(pair.module(x=x, y=y), y), backend="aot_eager")
    found["loop"] = _gap(step, pair, rows(5), lambda loss, _: loss)
    pair = Pair(REGATHERED, n=2)
    found["regather"] = _gap(torch.compile(pair.module, backend="aot_eager"), pair, rows(5))
    return found


def _gap(
    run: Callable[..., Any],
    pair: Pair,
    batch: dict[str, Tensor],
    loss_of: Callable[[Any, Tensor], Tensor] = _outside,
) -> float:
    """The largest difference of the loss and of all gradients."""
    for model in pair.both():
        model.zero_grad()
    torch.manual_seed(3)
    mine = loss_of(run(**pair.module.shard_inputs(**batch)), batch["y"])
    torch.manual_seed(3)
    theirs = _outside(pair.plain(**batch), batch["y"])
    for loss in (mine, theirs):
        loss.backward()
    return max(gap(mine, theirs), pair.gradients())


def everything() -> dict[str, Any]:
    """One job of 2 processes."""
    gaps = compiled()
    return {"refused": refused_by_one(), "compiled": gaps}
