"""shardlang: a sharding compiler for PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardlang.api import Program, compile
    from shardlang.compiler.driver import CompileError
    from shardlang.extend import Proof, ProofError, RuleError, local, prove, rule
    from shardlang.runtime.checkpoint.checkpoints import Checkpoints
    from shardlang.runtime.trainer.random_states import RandomStates

__all__ = [
    "Checkpoints",
    "CompileError",
    "Program",
    "Proof",
    "ProofError",
    "RandomStates",
    "RuleError",
    "__version__",
    "compile",
    "local",
    "prove",
    "rule",
]

__version__ = "0.1.0"

_LAZY = {
    "Checkpoints": "shardlang.runtime.checkpoint.checkpoints",
    "CompileError": "shardlang.compiler.driver",
    "Program": "shardlang.api",
    "Proof": "shardlang.extend",
    "ProofError": "shardlang.extend",
    "RandomStates": "shardlang.runtime.trainer.random_states",
    "RuleError": "shardlang.extend",
    "compile": "shardlang.api",
    "local": "shardlang.extend",
    "prove": "shardlang.extend",
    "rule": "shardlang.extend",
}


def __getattr__(name: str) -> object:
    """Import the interface when it is first used: the command line starts without torch."""
    if name in _LAZY:
        found: object = getattr(importlib.import_module(_LAZY[name]), name)
        return found
    raise AttributeError(f"module `shardlang` has no attribute `{name}`")
