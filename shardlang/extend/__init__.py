"""A program's own ops: their sharding rules, functions as local regions, and the proof of both."""

from shardlang.extend.ops import Proof, ProofError, RuleError, local, overload_of, prove, rule

__all__ = ["Proof", "ProofError", "RuleError", "local", "overload_of", "prove", "rule"]
