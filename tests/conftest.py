"""The process of the suite: garbage is collected rarely, for a collection looks at all models, and
no example of hypothesis has a time to keep."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

from shardlang.ir.collection import RARELY
from tests import captures
from tests.runtime import forking

gc.set_threshold(*RARELY)
captures.share()
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Workers of a suite share the zygotes of its first process."""
    if config.getoption("numprocesses", None):
        forking.share()


LONG = (
    "test_pages.py",
    "test_diagnostics_doc.py",
    "test_loops.py",
    "test_zero.py",
    "test_finetune.py",
)
"""Files that take the longest: they run first, so that no process waits for one at last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; all else stays in its order."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """What has been imported stays: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()
