"""Keeping quiet what PyTorch logs about calls on fake tensors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from shardlang.ir.compat import CHATTY_LOGGERS


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
