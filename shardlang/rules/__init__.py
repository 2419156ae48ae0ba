"""Op rules: for every op, how its dims may be split. One family of ops a file."""

from shardlang.rules import (
    attention,
    embedding,
    expand,
    factory,
    join,
    loss,
    matmul,
    norm,
    pointwise,
    random,
    reduce,
    select,
    shift,
    softmax,
    view,
)
from shardlang.rules.registry import RULES, find, rule

__all__ = [
    "RULES",
    "attention",
    "embedding",
    "expand",
    "factory",
    "find",
    "join",
    "loss",
    "matmul",
    "norm",
    "pointwise",
    "random",
    "reduce",
    "rule",
    "select",
    "shift",
    "softmax",
    "view",
]
