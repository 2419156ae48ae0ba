"""Specs that `shardlang init` writes for the model zoo: written, and proven as they stand."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardlang.capture import TASKS
from shardlang.capture.hf import import_transformers
from tests.commands import shardlang
from tests.model_zoo.cases import Case
from tests.model_zoo.specs import HERE

MESHES = ("dp=2,tp=2", "fsdp=2,tp=2", "fsdp=4")
"""The meshes that a spec is written for, for every model."""

BY_EXPERT = "dp=2,ep=2"
"""One more for mixtures of experts."""

REFUSED = {"wav2vec2 ctc": "SH0354", "mixtral eager": "SH0354"}
"""Models that cannot be traced, with the code of the diagnostic."""

INPUT = re.compile(r"input (\w+) : (.*) \[DATA.*")
PARAM = re.compile(r"^(param|buffer|value) .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Written:
    """What writing and proving the spec of one mesh gave.

    Attributes:
        error: the worst error of loss, outputs and gradients; None where there is no proof.
        percent: the part of the bytes of all matrices that is split over the model axis.
        sent: bytes that the busiest device sends in a step, for the first mesh.
        by_hand: the same with the parameters laid out as in the zoo's own spec.
        seconds: time of writing and proving.
        finding: what was refused, or is wrong.
    """

    mesh: str
    error: float | None = None
    percent: float | None = None
    sent: int = 0
    by_hand: int = 0
    seconds: float = 0.0
    finding: str = ""
    code: str = ""

    @property
    def ok(self) -> bool:
        """Whether the spec is written and proven."""
        return not self.finding


def meshes_of(case: Case) -> tuple[str, ...]:
    """The meshes of a case."""
    return (*MESHES, BY_EXPERT) if case.kind == "experts" else MESHES


def prove_written(case: Case, mesh: str, folder: Path) -> Written:
    """Write the spec of one mesh and prove it, with no edit in between."""
    start = time.perf_counter()
    path = folder / f"{case.name.replace(' ', '-')}-{mesh}.shard"
    document = run("init", *arguments(case, folder), "--mesh", mesh, "-o", path)
    if not document["ok"]:
        return _refused(mesh, document, start)
    percent = document["percent"]
    if shardlang("fmt", "--check", path)[0] != 0:
        return Written(mesh, finding="the written spec is not canonical")
    document = run("verify", path)
    if not document["ok"]:
        return _refused(mesh, document, start)
    parts = [document["outputs"], document["gradients"]]
    error = max(part["max_error"] for part in parts if part is not None)
    seconds = time.perf_counter() - start
    if mesh != MESHES[0]:
        return Written(mesh, error, percent, seconds=seconds)
    by_hand = sent_by(hand_written(case, path))
    return Written(mesh, error, percent, sent_by(path), by_hand, seconds)


def arguments(case: Case, folder: Path) -> list[str | Path]:
    """The model's arguments for the command: a configuration, or a function and its inputs."""
    if isinstance(case.model, str):
        stated = [INPUT.fullmatch(line) for line in case.inputs]
        inputs = [f"{found[1]}:{found[2]}" for found in stated if found is not None]
        return [f"{HERE / case.model}", *(word for text in inputs for word in ("--input", text))]
    config = folder / f"{case.name.replace(' ', '-')}.json"
    config.write_text(json.dumps({**case.model, **_class_of(case), **_options(case)}))
    return [config]


def _class_of(case: Case) -> dict[str, Any]:
    """The `architectures` of a configuration, as checkpoints have it."""
    transformers = import_transformers()
    assert isinstance(case.model, dict)
    kind = transformers.CONFIG_MAPPING[case.model["model_type"]]
    found = getattr(transformers, TASKS[case.task])._model_mapping[kind]
    return {"architectures": [(found[0] if isinstance(found, tuple) else found).__name__]}


def _options(case: Case) -> dict[str, str]:
    """The options of a case's model statement, as settings of its configuration."""
    return dict(re.findall(r'(\w+) = "(\w+)"', case.options))


def hand_written(case: Case, path: Path) -> Path:
    """A written spec with the parameters laid out as in the zoo's own."""
    by_hand = path.with_suffix(".hand.shard")
    text = "".join(f'param "{pattern}" {layout}\n' for pattern, layout in case.params)
    by_hand.write_text(PARAM.sub("", path.read_text()) + text)
    return by_hand


def sent_by(path: Path) -> int:
    """Bytes that the busiest device sends in a step."""
    totals = run("plan", path)["totals"]
    return sum(op["bytes"] for phase in totals.values() for op in phase.values())


def run(*words: str | Path) -> dict[str, Any]:
    """The document of a command, also of one that fails."""
    _, out, err = shardlang(*words, "--json")
    assert out, err
    found: dict[str, Any] = json.loads(out)
    return found


def _refused(mesh: str, document: dict[str, Any], start: float) -> Written:
    findings = [f for f in document["diagnostics"] if f["severity"] == "error"]
    text = "; ".join(f"{f['code']} {f['message']}" for f in findings)
    seconds = time.perf_counter() - start
    return Written(mesh, seconds=seconds, finding=text, code=findings[0]["code"])
