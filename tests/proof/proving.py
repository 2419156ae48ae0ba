"""Proving a model and a spec that a test holds as text."""

from __future__ import annotations

from pathlib import Path

from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.proof.findings import findings
from shardlang.proof.prove import verify_compiled
from shardlang.proof.report import Report
from shardlang.spec import load_spec_text

HEAD = """
import torch
from torch import nn
import torch.nn.functional as F

"""


def compiled(folder: Path, model: str, spec: str) -> Compiled:
    """A spec beside its `model.py`; the spec names the model `"model.py:Net"`, or any other."""
    (folder / "model.py").write_text(HEAD + model)
    loaded, found = load_spec_text(spec, str(folder / "case.shard"))
    assert loaded is not None, found
    return compile_spec(loaded)


def proof(folder: Path, model: str, spec: str) -> Report:
    """The report on a spec."""
    return verify_compiled(compiled(folder, model, spec))


def codes(report: Report, done: Compiled) -> list[tuple[str, str]]:
    """The codes and severities of what a report finds."""
    return [(f.code, f.severity) for f in findings(report, done.spec.model.span)]
