"""What `torch.compile` leaves as it is.

A sharded module compiles the regions of its program by itself. What lies around them compares the
ranks, looks at the modules, and makes tensors of our own kind, none of which belongs into a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., object])


def outside(function: F) -> F:
    """A function that is never compiled, nor what it calls."""
    return cast(F, torch.compiler.disable(function))  # type: ignore[no-untyped-call]


def outside_itself(function: F) -> F:
    """A function that is never compiled itself; what it calls may be."""
    return cast(F, torch.compiler.disable(function, recursive=False))  # type: ignore[no-untyped-call]
