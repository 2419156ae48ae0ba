"""What a run says of itself in the manifests of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import torch

from shardlang.compiler.driver import Compiled
from shardlang.runtime.trainer.run_folder import RunFolder
from shardlang.spec import Spec
from shardlang.spec.types import PipelineDecl
from shardlang.training.hugging_face import HUGGING_FACE, directory_of


def about_of(compiled: Compiled) -> dict[str, object]:
    """The spec, what it stands for, and the program's fingerprint, as JSON holds it."""
    spec = compiled.spec
    return {
        "spec": _text_of(spec),
        "set": spec.set_values,
        "mesh": {axis.name: axis.size for axis in spec.mesh.whole.axes},
        "program": compiled.program.fingerprint(),
        **identity(compiled),
        HUGGING_FACE: directory_of(compiled.source).document(),
    }


def folder_of(compiled: Compiled, out: Path, seed: int, steps: int) -> RunFolder:
    """The folder of a run, taken by this process.

    Raises:
        RunError: SH0664, another run is at it; SH0609, it cannot be written.
    """
    about = about_of(compiled)
    versions = {"shardlang": _version(), "torch": torch.__version__, "python": python_version()}
    more: dict[str, object] = {"versions": versions, "seed": seed, "steps": steps}
    return RunFolder(out, str(about.pop("spec")), {**more, **about})


def _version() -> str:
    try:
        return version("shardlang")
    except PackageNotFoundError:
        return "unknown"


def identity(compiled: Compiled) -> dict[str, object]:
    """What must not differ between a run and its resume."""
    spec, rule = compiled.spec, compiled.rule
    schedule = () if spec.learning_rate is None else spec.learning_rate.phases
    groups = [f"{_listed(each.arguments)}: {', '.join(sorted(each.names))}" for each in rule.groups]
    return {
        "model": _model_of(spec),
        "inputs": {one.name: f"{one.dtype} {list(one.shape)}" for one in compiled.inputs},
        "optimizer": _called(rule.name, rule.arguments),
        "groups": groups,
        "learning_rate": " ".join(_called(x.name, dict(x.arguments)) for x in schedule),
        "precision": str(compiled.program.step.precision),
        "random": spec.random,
        "pipeline": None if spec.pipeline is None else _stages_of(spec, spec.pipeline),
    }


def _text_of(spec: Spec) -> str:
    return spec.path.read_text(encoding="utf-8") if spec.path.is_file() else ""


def _model_of(spec: Spec) -> str:
    model = spec.model
    return f"{model.path.name}:{_called(model.function or model.kind, model.kwargs)}"


def _stages_of(spec: Spec, stated: PipelineDecl) -> str:
    """A pipeline in words."""
    assert spec.accumulate is not None, "a pipeline has microbatches"
    made, order = stated.actions, stated.schedule
    stages = stated.virtual * spec.mesh[stated.axis].size if made is None else made.stages
    return f"{stages} stages over {stated.axis}, {order}, {spec.accumulate.count} microbatches"


def _called(name: str, arguments: Mapping[str, object]) -> str:
    return f"{name}({_listed(arguments)})"


def _listed(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in sorted(arguments.items()))


def differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> tuple[list[str], list[str]]:
    """What differs between two runs: what a resume refuses, and what it says."""
    refused = [_changed(key, before, now) for key in _SAME if before.get(key) != now.get(key)]
    said = [_changed(key, before, now) for key in _MAY_CHANGE if before.get(key) != now.get(key)]
    same_text = all(before.get(key) == now.get(key) for key in ("spec", "set"))
    programs = [[one.get(key) for key in ("program", STAGES)] for one in (before, now)]
    if same_text and not refused and not said and programs[0] != programs[1]:
        where = _other_stages(before.get(STAGES), now.get(STAGES))
        said = [f"the same spec gives another program{where}: {_WHY}"]
    return refused, said


STAGES = "stages"
"""The fingerprints of a pipeline's stages, by number."""

_WHY = "the model's code or a library has changed"


def _other_stages(before: object, now: object) -> str:
    """In which stages two pipelines differ, in words."""
    if not (isinstance(before, Sequence) and isinstance(now, Sequence)) or len(before) != len(now):
        return ""
    found = [str(i) for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    return f" of stage{'s' * (len(found) > 1)} {', '.join(found)}" if found else ""


_SAME = ("model", "optimizer", "groups", "precision")
_MAY_CHANGE = ("learning_rate", "mesh", "inputs", "random", "pipeline")


def _changed(key: str, before: Mapping[str, object], now: Mapping[str, object]) -> str:
    return f"`{key}` was {_shown(before.get(key))} and is {_shown(now.get(key))}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {part}" for key, part in value.items()) or "empty"
    return str(value) if value is not None else "not stated"
