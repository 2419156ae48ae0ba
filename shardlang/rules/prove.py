"""`python -m shardlang.rules.prove`: the brute-force proof of the op rules."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("shardlang.proof.rules", run_name="__main__", alter_sys=True)
