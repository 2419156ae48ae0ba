"""Capture: from a model to a graph of functional aten operators under the model's own names."""

from __future__ import annotations

from shardlang.capture.errors import CODES, CaptureError
from shardlang.capture.hf import TASKS, HfSource
from shardlang.capture.inputs import make_inputs
from shardlang.capture.nest import Skeleton
from shardlang.capture.python_file import PythonSource
from shardlang.capture.raise_dtype import raise_to_float64, raised_dtype
from shardlang.capture.run import run_graph
from shardlang.capture.source import CallableSource, InputSpec, ModelSource
from shardlang.capture.trace import capture
from shardlang.capture.types import Captured
from shardlang.capture.weights import Select, load_plain, materialize

__all__ = [
    "CODES",
    "TASKS",
    "CallableSource",
    "CaptureError",
    "Captured",
    "HfSource",
    "InputSpec",
    "ModelSource",
    "PythonSource",
    "Select",
    "Skeleton",
    "capture",
    "load_plain",
    "make_inputs",
    "materialize",
    "raise_to_float64",
    "raised_dtype",
    "run_graph",
]
