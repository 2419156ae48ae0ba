"""What a case of the model zoo is: a model, its inputs, and how its matrices are split over tp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Params = Sequence[tuple[str, str]]
"""Parameter patterns and their layouts."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model at a tiny size.

    Attributes:
        kind: what the model is, as the table groups it.
        model: the configuration of a Hugging Face model, or `file.py:function` in `models.py`.
        task: the task of a Hugging Face model.
        inputs: input statements; `DATA` stands for the axis that splits the batch.
        params: how parameters are split over tp.
        whole: patterns of matrices that are left whole over tp on purpose.
        extra: further specs of this case alone, by name.
        refused: specs that are refused, with the code of the diagnostic.
    """

    name: str
    kind: str
    model: Mapping[str, Any] | str
    inputs: tuple[str, ...]
    params: Params
    task: str = ""
    options: str = ""
    whole: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def tokens(*names: str, length: int = 10) -> str:
    """An input statement for integer inputs of shape `b s`."""
    return f"input {', '.join(names)} : i64[4, {length}] [DATA, _]"


def columns(names: str) -> tuple[str, str]:
    """Matrices of shape `out in`, and their biases, split along `out`."""
    return f"**.{{{names}}}.{{weight,bias}}", "[tp, ...]"


def weights(names: str) -> tuple[str, str]:
    """Matrices split along their first dim."""
    return f"**.{{{names}}}.weight", "[tp, ...]"


def rows(names: str) -> tuple[str, str]:
    """Matrices of shape `out in` split along `in`."""
    return f"**.{{{names}}}.weight", "[_, tp]"


def table(name: str) -> tuple[str, str]:
    """A table of shape `vocabulary width` split along the vocabulary."""
    return f"{name}.weight", "[tp, _]"
