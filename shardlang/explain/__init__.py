"""Why a tensor lies as it does, and why a collective is there."""

from shardlang.explain.explain import explain
from shardlang.explain.find import UnknownName
from shardlang.explain.text import render
from shardlang.explain.types import Alternative, Explanation, Link, Story

__all__ = ["Alternative", "Explanation", "Link", "Story", "UnknownName", "explain", "render"]
