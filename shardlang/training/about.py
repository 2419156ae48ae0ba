"""What a run says of itself in the manifests of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import torch

from shardlang.compiler.driver import Compiled
from shardlang.grammar.words import counted
from shardlang.ir.optimizers import UpdateRule
from shardlang.runtime.trainer.run_folder import RunFolder
from shardlang.spec import Spec
from shardlang.spec.flat import flat_text
from shardlang.spec.types import PipelineDecl, PrecisionDecl
from shardlang.training.changes import GROUPS
from shardlang.training.hugging_face import HUGGING_FACE, directory_of


def about_of(compiled: Compiled) -> dict[str, object]:
    """The spec, what it stands for, and the program's fingerprint, as JSON holds it."""
    spec = compiled.spec
    return {
        "spec": flat_text(spec),
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
    return {
        "model": _model_of(spec),
        "inputs": {one.name: f"{one.dtype} {list(one.shape)}" for one in compiled.inputs},
        "optimizer": _called(rule.name, rule.arguments),
        GROUPS: _groups_of(rule),
        "learning_rate": " ".join(_called(x.name, dict(x.arguments)) for x in schedule),
        "precision": _precision_of(spec.precision),
        "random": spec.random,
        "pipeline": None if spec.pipeline is None else _stages_of(spec, spec.pipeline),
    }


def _model_of(spec: Spec) -> str:
    model = spec.model
    return f"{model.path.name}:{_called(model.function or model.kind, model.kwargs)}"


def _groups_of(rule: UpdateRule) -> dict[str, list[str]]:
    """The names of the parameters that are given each list of arguments."""
    found: dict[str, list[str]] = {}
    for each in rule.groups:
        found.setdefault(_listed(each.arguments), []).extend(each.names)
    return {arguments: sorted(names) for arguments, names in found.items()}


def _precision_of(stated: PrecisionDecl) -> str:
    """The block's lines, as a spec has them."""
    types = {"compute": stated.compute, "master": stated.master, "reduce": stated.reduce}
    lines = [f"{name} = {one.dtype}" for name, one in types.items() if one is not None]
    scale = stated.loss_scale
    if scale is not None:
        lines.append(f"loss_scale = {'dynamic' if scale.factor is None else scale.factor}")
    return ", ".join(lines)


def _stages_of(spec: Spec, stated: PipelineDecl) -> str:
    """A pipeline in words."""
    assert spec.accumulate is not None, "a pipeline has microbatches"
    made, order = stated.actions, stated.schedule
    stages = stated.virtual * spec.mesh[stated.axis].size if made is None else made.stages
    count = spec.accumulate.count
    return f"{counted(stages, 'stage')} over {stated.axis}, {order}, {count} microbatches"


def _called(name: str, arguments: Mapping[str, object]) -> str:
    return f"{name}({_listed(arguments)})"


def _listed(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in sorted(arguments.items()))
