"""The global random generators that a model's code may draw from: torch's, numpy's, Python's."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from types import ModuleType

import torch


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Give the generators back as they were; those of GPUs too, where they are in use."""
    numpy = _numpy()
    own = random.getstate()
    others = numpy.random.get_state() if numpy is not None else None
    on_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = list(range(torch.cuda.device_count())) if on_gpus else []
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(own)
        if numpy is not None:
            numpy.random.set_state(others)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all generators for the length of the body."""
    numpy = _numpy()
    with generators_kept():
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        yield


def draws() -> Iterator[tuple[str, object]]:
    """Where the generators of Python and, if it is loaded, of NumPy stand."""
    yield "random", random.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        yield "numpy.random", (kind, keys.tobytes(), *rest)


def _numpy() -> ModuleType | None:
    """NumPy, which torch does without where it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy
