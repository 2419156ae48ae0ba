"""Look-ups in a table: a split vocabulary leaves zeros for rows elsewhere, a partial sum."""

from __future__ import annotations

import torch

from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.indexed import table_rows
from shardlang.rules.local_shape import place
from shardlang.rules.registry import rule
from shardlang.rules.shapes import signature
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _table(call: Call) -> str:
    """Gradients scaled by how often a row is looked up need all look-ups and all rows."""
    mark = "!" if call.flag("scale_grad_by_freq") else ""
    return f"v{mark} d, b{'...' + mark} -> b... d"


def _shard(call: Call, sharding: Sharding) -> LocalCall:
    """With the vocabulary split, each device looks up its own rows."""
    if not sharding.factors["v"].axes:
        return call.replace()
    at, sparse = place(sharding.factors["v"]), call.flag("sparse")
    return local.lookup, (call["weight"], call["indices"], call["padding_idx"], at, sparse), {}


rule(
    aten.embedding.default, kind=OpKind.LOOKUP, indexes=table_rows,
    spec=_table, localize=_shard, linear=["weight"], passes=False, picks="v indices",
)  # fmt: skip


def _rows(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(at=place(sharding.factors["v"]))


def _rows_spec(call: Call) -> str:
    index = names_of(call.rank("index"), "b")
    width = ["d"] * (call.rank("weight") - 1)
    return signature([tensor(["v", *width]), tensor(index)], [tensor([*index, *width])])


rule(
    local.lookup, name="embedding", kind=OpKind.LOOKUP,
    spec=_rows_spec, localize=_rows, linear=["weight"], passes=False,
)  # fmt: skip


def _bags(call: Call) -> str:
    """embedding_bag: the features are carried; which row falls into which bag needs all rows."""
    others = [
        tensor(f"x{i}d{d}!" for d in range(len(shape))) for i, shape in enumerate(call.shapes[1:])
    ]
    features = call.shape("weight")[1]
    results = [
        tensor(
            ["m!", "d"]
            if len(s) == 2 and s[1] == features
            else (f"y{i}d{d}!" for d in range(len(s)))
        )
        for i, s in enumerate(call.result_shapes)
    ]
    return signature(["v! d", *others], ["m! d", *results[1:]])


rule(
    aten.embedding_bag, aten._embedding_bag,
    spec=_bags, passes=False,
    keeps="weight indices offsets per_sample_weights result.1 result.2 result.3",
)  # fmt: skip
