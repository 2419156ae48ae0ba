"""The model that a spec is written for: a config, a checkpoint folder, or a function in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardlang.capture import TASKS, CaptureError, HfSource, ModelSource, PythonSource
from shardlang.capture.hf import models_of
from shardlang.capture.hf_types import Config
from shardlang.grammar import tree as t
from shardlang.init.arguments import parse_arguments, values_of


@dataclass(frozen=True, slots=True)
class Target:
    """A model, and how its spec names it.

    Attributes:
        path: the config, the checkpoint folder, or the Python file.
        arguments: what the model is built with.
        function: the build function in a Python file.
        task: the task of a Hugging Face model, None where the config's own class does none of
            `TASKS`.
        chosen: the task was chosen here, since neither the person nor the config says.
    """

    source: ModelSource
    path: Path
    arguments: tuple[t.Argument, ...] = ()
    function: str | None = None
    task: str | None = None
    chosen: bool = False


def find_model(text: str, task: str | None = None, given: Iterable[str] = ()) -> Target:
    """The model that `text` names.

    Args:
        given: arguments as `NAME=VALUE`.

    Raises:
        CaptureError: there is no such model, or it does not do the task.
    """
    arguments = parse_arguments(given)
    path, colon, function = text.rpartition(":")
    if colon and path.endswith(".py"):
        source = PythonSource(text, values_of(arguments))
        return Target(source, Path(path), arguments, function)
    if text.endswith(".py"):
        raise CaptureError(
            "SH0351", f"`{text}` does not name a function", help=f"write `{text}:build`"
        )
    return _hf(text, task, arguments)


def _hf(text: str, task: str | None, arguments: tuple[t.Argument, ...]) -> Target:
    """A Hugging Face model, for its own task or the likeliest."""
    options = values_of(arguments)
    if "task" in options:
        raise CaptureError("SH0352", "the task is no `--arg`", help="write `--task TASK`")
    config = HfSource(text, **options).config()
    found = task or _task_of_class(config)
    chosen = found is None and not config.architectures
    if chosen:
        found = _likely_task(config)
    asked = {} if found is None else {"task": found}
    source = HfSource(text, **asked, **options)
    return Target(source, Path(text), arguments, None, found, chosen)


def _task_of_class(config: Config) -> str | None:
    """The task whose model is the class that the config names."""
    named = (config.architectures or [""])[0]
    for task in TASKS:
        mapping = models_of(task)
        if type(config) not in mapping:
            continue
        found = mapping[type(config)]
        classes = found if isinstance(found, Sequence) else (found,)
        if any(kind is not None and kind.__name__ == named for kind in classes):
            return task
    return None


def _likely_task(config: Config) -> str:
    """What a model of this type is usually trained for."""
    both = bool(getattr(config, "is_encoder_decoder", False))
    order = ["seq2seq-lm", "speech-seq2seq"] if both else ["masked-lm", "causal-lm"]
    for task in (*order, "image-classification", "audio-classification", "sequence-classification"):
        if type(config) in models_of(task):
            return task
    return "base"
