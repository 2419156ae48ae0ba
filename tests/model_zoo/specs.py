"""Specs of the model zoo, written from its cases."""

from __future__ import annotations

import json
from pathlib import Path

from tests.model_zoo.cases import Case

MESHES = {"dp2 x tp2": "dp = 2 tp = 2", "fsdp4": "fsdp = 4", "fsdp2 x tp2": "fsdp = 2 tp = 2"}
"""The layouts that every model is verified in."""
HERE = Path(__file__).parent


def spec_names(case: Case) -> list[str]:
    """The specs of a case."""
    return [*MESHES, *case.extra]


def write_spec(case: Case, name: str, folder: Path) -> Path:
    """Write one spec of a case, and its configuration, and return its path."""
    stem = f"{case.name}-{name.replace(' ', '-')}"
    path = folder / f"{stem}.shard"
    path.write_text(spec_text(case, name, folder))
    return path


def spec_text(case: Case, name: str, folder: Path) -> str:
    """The text of one spec of a case."""
    if name in case.extra:
        return f"{_model(case, folder)}\n{case.extra[name]}\n"
    data = name.split(" ")[0].rstrip("24")
    lines = [f"mesh {{ {MESHES[name]} }}", _model(case, folder)]
    lines += [line.replace("DATA", data) for line in case.inputs]
    if "tp" in name:
        lines += [f'param "{pattern}" {layout}' for pattern, layout in case.params]
    if data == "fsdp":
        lines.append('store "**" over fsdp')
    return "\n".join(lines) + "\n"


def _model(case: Case, folder: Path) -> str:
    """The model statement; a configuration is written beside the spec."""
    if isinstance(case.model, str):
        return f'model "{HERE / case.model}"({case.options})'
    config = folder / f"{case.name}.json"
    config.write_text(json.dumps(dict(case.model)))
    options = f", {case.options}" if case.options else ""
    return f'model hf("{config}", task = "{case.task}", mode = "train"{options})'
