"""What the tests of uneven sizes run on every rank."""

from __future__ import annotations

import os
from pathlib import Path

from shardlang.driver import compile_spec
from shardlang.run import Run, recipe_of, sharded_module
from shardlang.runtime.groups import Groups, join
from shardlang.runtime.train import Record
from shardlang.spec import load_spec

ROOT = Path(__file__).parents[2]
SPECS = {
    "5 heads over 2, batch 7 over 2": "examples/uneven/heads.shard",
    "3 key heads over 4": "examples/uneven/kv.shard",
    "vocabulary 50257 over 4": "examples/uneven/vocab.shard",
    "30 rows of an image over 4": "examples/resnet/rows.shard",
    "short batches": "tests/runtime/short.shard",
}
SEED, STEPS = 2, 3

Losses = list[float | None]


def losses() -> dict[str, tuple[Losses, Losses]]:
    """Of every spec, the losses on these processes, and on rank 0 those of the plain model."""
    rank = int(os.environ["RANK"])
    found: dict[str, tuple[Losses, Losses]] = {}
    joined = False
    for name, path in SPECS.items():
        spec, findings = load_spec(ROOT / path)
        assert spec is not None, findings
        compiled = compile_spec(spec)
        groups = Groups(spec.mesh, rank) if joined else join(spec.mesh, timeout_s=60)
        joined = True
        run = Run(compiled, recipe_of(compiled, STEPS if "short" not in name else 10, SEED))
        mine = run.sharded(sharded_module(compiled, groups, SEED), list)
        plain = run.reference(list) if rank == 0 else []
        found[name] = (_losses(mine), _losses(plain))
    return found


def _losses(records: list[Record]) -> Losses:
    return [record.loss for record in records]
