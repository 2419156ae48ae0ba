"""Rules of products by groups of rows, in their own places and in the order of a route."""

from shardlang.rules.experts import grouped, routed

__all__ = ["grouped", "routed"]
