"""Keeping what a model's code prints, and what torch remarks on it, apart from our own output."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

from shardlang.ir.compat import CHATTY_LOGGERS


@contextlib.contextmanager
def prints_apart() -> Iterator[None]:
    """Send what the model's code prints to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Drop what torch's tracing logs before it raises: a caller that goes on knows better."""
    loggers = [logging.getLogger(name) for name in CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
