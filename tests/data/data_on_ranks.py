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
EVALUATED = {
    "rows": ("mesh { dp = 2 }", 5),
    "all by both": ("mesh { dp = 1 tp = 2 } accumulate 5", 5),
    "parts": ("mesh { dp = 2 } accumulate 2", 6),
    "uneven parts": ("mesh { dp = 2 } accumulate 2", 5),
}
"""What is evaluated: each rank's rows, of each microbatch, or all where both hold them."""
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
    found["evaluated"] = {
        name: evaluated(f"{mesh} {held_out(path)}", rows)
        for name, (mesh, rows) in EVALUATED.items()
    }
    program = trained.program(f"{WAYS['rows']} {statement(path if rank else path + '.other.npy')}")
    program.load()
    try:
        program.trainer()
    except RunError as error:
        found["other"] = error.code, error.message
    return found


def held_out(path: str) -> str:
    """The data of evaluations, of which 12 of 23 windows are held out."""
    roles = 'ids = "ids", labels = "labels"'
    return f'data "{path}" (validation = 0.5, {roles}) evaluate every 1 batches 2'


class Noted:
    """Notes the windows that are read, and leaves some of their labels out."""

    def __init__(self) -> None:
        self.read, self._read = list[int](), TokenSamples.read

    def __enter__(self) -> list[int]:
        def noting(samples: TokenSamples, numbers: Numbers, names: Any) -> dict[str, torch.Tensor]:
            self.read.extend(numbers.tolist())
            found = self._read(samples, numbers, names)
            for row, number in enumerate(numbers.tolist()):
                if "labels" in found:
                    found["labels"][row, : number % 4] = -100
            return found

        TokenSamples.read = noting  # type: ignore[method-assign]
        return self.read

    def __exit__(self, *error: object) -> None:
        TokenSamples.read = self._read  # type: ignore[method-assign]


def evaluated(stated: str, rows: int) -> dict[str, Any]:
    """Two evaluations of the model as it is, and the windows that each reads here."""
    program = trained.program(stated, rows=rows)
    program.load()
    trainer = program.trainer()
    found = []
    for _ in range(2):
        with Noted() as read:
            made = trainer.evaluate()
            found.append((made.loss, made.tokens, sorted(set(read))))
    return {"found": found}


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
