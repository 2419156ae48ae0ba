"""Training from a file of tokens on two gloo processes: losses, and what each rank reads."""

from __future__ import annotations

import os
from typing import Any

import torch
import trained

from shardlang.runtime.data import TokenSamples
from shardlang.runtime.data.order import Numbers
from shardlang.runtime.errors import RunError

STEPS, SEED = 6, 3
WAYS = {"rows": "mesh { dp = 2 }", "accumulated": "mesh { dp = 2 } accumulate 2"}


def statement(path: str) -> str:
    """The data of the runs."""
    return f'data "{path}" (ids = "ids", labels = "labels") optimizer adamw(lr = 0.02)'


def everything() -> dict[str, Any]:
    """All results of this rank."""
    path, rank = os.environ["TOKENS"], int(os.environ["RANK"])
    found: dict[str, Any] = {
        name: losses(f"{mesh} {statement(path)}") for name, mesh in WAYS.items()
    }
    program = trained.program(f"{WAYS['rows']} {statement(path if rank else path + '.other.npy')}")
    program.load()
    try:
        program.trainer()
    except RunError as error:
        found["other"] = error.code, error.message
    return found


def losses(stated: str) -> dict[str, Any]:
    """A run that is broken off in its middle, and goes on in another one."""
    program = trained.program(stated)
    program.load()
    read: list[int] = []
    noted = TokenSamples.read

    def noting(self: TokenSamples, numbers: Numbers, names: Any) -> dict[str, torch.Tensor]:
        read.extend(numbers.tolist())
        return noted(self, numbers, names)

    TokenSamples.read = noting  # type: ignore[method-assign]
    trainer = program.trainer(seed=SEED)
    records = list(trainer.steps(STEPS // 2))
    place = trainer.state()["data"].state_dict()
    trainer._stream.close()
    first = list(read)
    again = program.trainer(seed=9)
    again.state()["data"].load_state_dict(place)
    records += list(again.steps(STEPS - STEPS // 2))
    again._stream.close()
    TokenSamples.read = noted  # type: ignore[method-assign]
    return {"losses": [record.loss for record in records], "read": first}
