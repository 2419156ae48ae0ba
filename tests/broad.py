"""Tests that repeat on more models what others of the suite show: `make broad` runs them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

broad = pytest.mark.broad


def sampled(values: Iterable[Any], sample: Collection[Any]) -> list[Any]:
    """Values for `parametrize`: those of the sample for `make test`, the others for `make broad`.

    Raises:
        ValueError: the sample has what is not among the values.
    """
    found = list(values)
    if missing := [one for one in sample if one not in found]:
        raise ValueError(f"{missing} are not among the values")
    return [one if one in sample else _marked(one) for one in found]


def _marked(value: Any) -> Any:
    """A value whose test is a broad one."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=broad)
