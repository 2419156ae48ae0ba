"""Keeping what is printed and remarked while a model is traced apart from our own output."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

from shardlang.ir.hushed import hushed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop remarks about tracing, and prints of values that are not known; errors are raised."""
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
        hushed(),
    ):
        warnings.simplefilter("ignore")
        yield
