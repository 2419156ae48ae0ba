"""shardlang: a sharding compiler for PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardlang.api import Program, compile
    from shardlang.driver import CompileError

__all__ = ["CompileError", "Program", "__version__", "compile"]

__version__ = "0.1.0"

_LAZY = {
    "CompileError": "shardlang.driver",
    "Program": "shardlang.api",
    "compile": "shardlang.api",
}


def __getattr__(name: str) -> Any:
    """Import the interface when it is first used: the command line starts without torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `shardlang` has no attribute `{name}`")
