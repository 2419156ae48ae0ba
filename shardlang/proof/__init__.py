"""The proof: the sharded program against the unmodified model, in float64 on one CPU."""

from shardlang.proof.report import Report
from shardlang.proof.verify import verify

__all__ = ["Report", "verify"]
