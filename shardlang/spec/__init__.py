"""Resolving a `.shard` file to a `Spec`."""

from shardlang.spec.resolve import load_spec, load_spec_text
from shardlang.spec.types import Spec

__all__ = ["Spec", "load_spec", "load_spec_text"]
