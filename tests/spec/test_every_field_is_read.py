"""Nothing is bound and dropped: what a spec says reaches code that acts on it.

Every field of the tree is read where statements are resolved, every field of the resolved spec
and of the binding where they are carried out. Reads are recorded while one spec that says
everything is compiled, planned and made into a recipe of training, and another one, of a pipeline,
into a step of stages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import shardlang.bind.types
import shardlang.grammar.leaves
import shardlang.grammar.pipeline
import shardlang.grammar.tree
import shardlang.spec.types
from shardlang.compiler.driver import compile_spec
from shardlang.compiler.pipelined import pipelined
from shardlang.passes.schedules.plain import interleaved_1f1b
from shardlang.plan import plan_of
from shardlang.plan.expectations import check_expects
from shardlang.plan.render import render_plan
from shardlang.spec import load_spec
from shardlang.training.data import stream_of
from shardlang.training.evaluating import evaluating_of
from shardlang.training.recipe import recipe_of
from shardlang.training.saving import policy_of

MODEL = Path(__file__).parent.parent / "runtime" / "tiny.py"
SPEC = f"""
use "base.shard"
mesh {{ dp = 2 as data  tp = 4 over nvlink }}
dims {{ batch = dp  whole = _ }}
model "{MODEL}:build"(width = 8)
input ids, labels : i64[rows, 4] below 11 [batch, _]
param "embed.weight" [tp:2, whole]
param "blocks.0.up.*" [tp/2:2(1), ...]
buffer "**.calls" []
value "blocks.*.norm".out [batch, ?, _]
output "extra.0" [batch, _, _]
loss loss
store "**" over dp regather
data "tokens.npy" documents (
  validation = 0.25, shuffle = false, drop_last = true, ids = "ids", labels = "labels"
)
optimizer adamw(lr = 0.01, betas = [0.9, 0.95], clip = 0.5)
group "**.bias" (weight_decay = 0)
learning_rate warmup(steps = 2) cosine(steps = 8)
evaluate every 2 batches 3 on "tokens.npy"
random fast
recompute "blocks.*"
recompute to 1GiB
accumulate 2
checkpoint every 500 keep 3 keep_every 5000 on_nan skip
precision {{ compute = f16 master = f32 reduce = f32 loss_scale = dynamic }}
schedule {{ prefetch 1MiB }}
cluster {{ peak f16 = 989e12 }}
expect {{
  forbid send_recv over dp in "blocks.*"
  forward all_reduce over tp >= 0
  layout "embed.weight" [?, ?]
  local "embed.weight" [6, ?]
  local bytes "embed.weight" <= 1GiB
  bytes any <= 9 * bound
}}
"""

PIPELINE = f"""
mesh {{ pp = 1 }}
model "{MODEL}:build"
input ids, labels : i64[4, 4] below 11 [_, _]
pipeline pp {{ microbatches 2 %s }}
"""
SPLITS = (
    "split auto",
    'split "blocks"  schedule interleaved_1f1b(virtual = 2)',
    'split { stage "blocks.0" stage "blocks.1" }  schedule "mine.csv"',
)

LAYERS: dict[ModuleType, tuple[str, ...]] = {
    shardlang.grammar.leaves: ("shardlang.grammar", "dataclasses"),
    shardlang.grammar.pipeline: ("shardlang.grammar", "dataclasses"),
    shardlang.grammar.tree: ("shardlang.grammar", "dataclasses"),
    shardlang.spec.types: ("shardlang.spec", "dataclasses"),
    shardlang.bind.types: ("shardlang.bind", "dataclasses"),
}
"""Each layer's records, and who may read them without carrying anything out."""

PLACES = {"span", "schedule_span", "budget_span", "trivia", "foot", "file"}
NOT_STATED = {"Node", "Item", "Trivia", "ModelNames"}
"""Where a thing stands, what is written around it, and what binding knows of the model."""

TOLD = {"Spec.path", "Spec.sets", "Number.text"}
"""What the documents and the formatter repeat."""


class Recorder:
    """The slot of a field that notes which modules read it, by itself or by a property.

    Comparing, hashing and printing are not reads.
    """

    def __init__(self, kind: type, name: str) -> None:
        self.slot, self.home = kind.__dict__[name], kind.__module__
        self.readers: set[str] = set()

    def __get__(self, holder: Any, kind: Any = None) -> Any:
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") == self.home and frame.f_back is not None:
            if frame.f_code.co_name.startswith("__"):
                return self.slot.__get__(holder, kind)
            frame = frame.f_back
        self.readers.add(frame.f_globals.get("__name__", ""))
        return self.slot.__get__(holder, kind)

    def __set__(self, holder: Any, value: Any) -> None:
        self.slot.__set__(holder, value)


def fields() -> Iterator[tuple[type, str, tuple[str, ...]]]:
    """Every field of every record, with the modules that do not count as readers."""
    for module, passing in LAYERS.items():
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__name__ in NOT_STATED:
                continue
            if kind.__module__ == module.__name__:
                own = kind.__dict__.get("__slots__", ())
                yield from ((kind, name, passing) for name in own if name not in PLACES)


def test_every_field_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {(kind, name): Recorder(kind, name) for kind, name, _ in fields()}
    for (kind, name), record in records.items():
        monkeypatch.setattr(kind, name, record)
    (tmp_path / "base.shard").write_text("let rows = 5\n")
    (tmp_path / "main.shard").write_text(SPEC)
    spec, findings = load_spec(tmp_path / "main.shard")
    assert spec is not None, findings
    compiled = compile_spec(spec)
    plan = plan_of(compiled)
    assert check_expects(spec, plan) == []
    render_plan(plan, False, 100)
    np.save(tmp_path / "tokens.npy", np.arange(400).reshape(50, 8) % 11)
    stream_of(compiled, 0)
    recipe_of(compiled, 1, 0)
    policy_of(compiled)
    evaluating_of(compiled, 0)
    (tmp_path / "mine.csv").write_text(interleaved_1f1b(1, 2).to_csv())
    for split in SPLITS:
        (tmp_path / "stages.shard").write_text(PIPELINE % split)
        spec, findings = load_spec(tmp_path / "stages.shard")
        assert spec is not None, findings
        pipelined(compile_spec(spec))
    unread = {
        f"{kind.__name__}.{name}"
        for kind, name, passing in fields()
        if all(reader.startswith(passing) for reader in records[kind, name].readers)
    }
    assert unread == TOLD
    assert len(records) > 80
