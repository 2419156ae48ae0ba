"""Attention: batch and heads are carried; query rows too, with their offset under a causal mask;
key positions by writing the softmax out."""

from __future__ import annotations

import math

import torch
from torch import fx

from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import place
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.shapes import signature
from shardlang.rules.softmax import in_dtype, in_wide
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _groups(call: Call) -> int:
    """How many groups of query heads share a key head; 0 where every query head has its own."""
    if len(call.out) < 3 or not call.flag("enable_gqa"):
        return 0
    groups = call.shape("key")[-3]
    return groups if groups != call.shape("query")[-3] else 0


def _batch(call: Call, heads: tuple[str, str] | None) -> tuple[list[str], list[str]]:
    """Names of the batch dims of query and of key, the last of which are the grouped heads."""
    names = names_of(len(call.out) - 2, "b")
    return ([*names[:-1], heads[0]], [*names[:-1], heads[1]]) if heads else (names, names)


def _spread(names: list[str], shape: tuple[int, ...], out: tuple[int, ...]) -> list[str]:
    """The batch names that an operand has; `1` where it is broadcast."""
    offset = len(out) - len(shape)
    return [
        "1" if size == 1 != out[offset + i] else names[offset + i]
        for i, size in enumerate(shape[:-2])
    ]


def _attention(call: Call) -> str:
    """query `b... h l e`, key `b... g s e`, value `b... g s v`, mask broadcast to `b... h l s`.

    Heads are split by groups: a device has some key heads and all query heads that read them, or,
    of one key head, some of these.
    """
    groups = _groups(call)
    return _with_heads(call, (f"(g={groups} r)", "g") if groups else None)


def _by_query_heads(call: Call) -> list[str]:
    """The same with query heads split in any way.

    A device has the first key heads of its query heads' groups whole. Where `p` shards hold whole
    groups, key heads are split into these first.
    """
    groups = 0 if call.number("dropout_p") else _groups(call)
    shards = [p for p in range(groups - 1, 1, -1) if groups % p == 0]
    heads = [*((f"(p={p} h~)", f"(p={p} g!)") for p in shards), ("h~", "g!")] if groups > 1 else []
    return [_with_heads(call, pair) for pair in heads]


def _with_heads(call: Call, heads: tuple[str, str] | None) -> str:
    """The rule of a call, by the factors of query heads and of key heads."""
    out, dropout = call.out, "!" if call.number("dropout_p") else ""
    batch, keys = _batch(call, heads)
    rows = "l!" if dropout else "l"
    operands = [
        [*_spread(batch, call.shape("query"), out), rows, "e!"],
        [*_spread(keys, call.shape("key"), out), "s" + (dropout or "~"), "e"],
        [*_spread(keys, call.shape("value"), out), "s", "v"],
    ]
    if call.has("attn_mask"):
        operands.append(_mask(call, [*batch, "l", "s"]))
    if dropout:
        operands = [[_held(name) for name in names] for names in operands]
    return signature([tensor(names) for names in operands], [tensor([*batch, "l", "v"])])


def _held(name: str) -> str:
    """A name, or both of a pair, that must stay whole: dropout is drawn for all scores at once."""
    if name in ("1", "v"):
        return name
    return name.replace(")", "!)") if "(" in name else name.rstrip("!~") + "!"


def _mask(call: Call, names: list[str]) -> list[str]:
    full = (*call.out[:-1], call.shape("key")[-2])
    shape = call.shape("attn_mask")
    offset = len(full) - len(shape)
    return ["1" if n == 1 != full[offset + i] else names[offset + i] for i, n in enumerate(shape)]


def _causal_rows(call: Call, sharding: Sharding) -> LocalCall:
    """With the query rows split, the causal mask starts at this device's first row."""
    rows = sharding.factors["l"]
    if not call.flag("is_causal") or not rows.axes:
        return call.replace()
    args = (*(call.operand(name) for name in ("query", "key", "value")), place(rows))
    options = {name: call[name] for name in ("scale", "enable_gqa")}
    return local.causal_attention, args, options


def one_head_per_query(emit: Emit, x: fx.Node, query: fx.Node) -> fx.Node:
    """Repeat the grouped heads of a key or value so that there is one per query head."""
    times = tensor_of(query).shape[-3] // tensor_of(x).shape[-3]
    return x if times == 1 else emit(aten.repeat_interleave.self_int, x, times, -3)


def _lower_attention(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Attention whose query heads are not split by groups, or whose keys are split."""
    return (_repeat_heads if sharding.rule.repeats else _write_out)(call, emit)


def _repeat_heads(call: Call, emit: Emit) -> fx.Node:
    """One key and value head per query head, of which a device takes those of its query heads."""
    query = call.operand("query")
    key, value = (one_head_per_query(emit, call.operand(name), query) for name in ("key", "value"))
    options = {name: call[name] for name in ("attn_mask", "is_causal", "scale")}
    return emit(call.target, query, key, value, **options)


def _write_out(call: Call, emit: Emit) -> fx.Node:
    """Scores, mask, softmax over all keys, weighted values."""
    query, key, value = (in_wide(emit, call.operand(name)) for name in ("query", "key", "value"))
    standard = call["scale"] is None
    scale = 1 / math.sqrt(call.shape("query")[-1]) if standard else float(call.number("scale"))
    scores = emit(local.attention_scores, emit(aten.mul.Tensor, query, scale), key)
    if call.flag("is_causal"):
        scores = emit(local.causal_fill, scores)
    if call.has("attn_mask"):
        scores = _masked(emit, scores, call.operand("attn_mask"))
    weights = emit(aten._safe_softmax.default, scores, -1)
    return in_dtype(emit, emit(local.attend, weights, value), call.results[0].dtype)


def _masked(emit: Emit, scores: fx.Node, mask: fx.Node) -> fx.Node:
    if tensor_of(mask).dtype is not torch.bool:
        return emit(aten.add.Tensor, scores, mask)
    hidden = emit(aten.logical_not.default, mask)
    return emit(aten.masked_fill.Scalar, scores, hidden, -math.inf)


rule(
    aten.scaled_dot_product_attention, spec=_attention, localize=_causal_rows,
    lower=_lower_attention, others=_by_query_heads, passes=False,
    random=lambda call: call.number("dropout_p") != 0,
    kind=OpKind.ATTENTION, flops=["query key", "result value"],
    keeps="query key value attn_mask result",
)  # fmt: skip


FUSED = (aten.scaled_dot_product_attention.default, local.causal_attention)
"""Attentions for which each kind of device has kernels of its own."""


def _scores_spec(call: Call) -> str:
    """attention_scores and attend: batch dims broadcast, one key head for r query heads."""
    left, right = call.shapes
    batch = names_of(len(call.out) - 2, "b")
    keys = [*batch]
    if batch and len(right) > 2 and right[-3] not in (1, call.out[-3]):
        batch[-1], keys[-1] = f"(g={right[-3]} r)", "g"
    a = _spread(batch, left, call.out)
    b = _spread(keys, right, call.out)
    lost, made = ("s", "v") if call.target is local.attend else ("e", "s")
    key = tensor([*b, "s", "v" if made == "v" else "e"])
    return signature([tensor([*a, "l", lost]), key], [tensor([*batch, "l", made])])


rule(
    local.attention_scores, kind=OpKind.PRODUCT,
    spec=_scores_spec, linear=["query", "key"], passes=False,
)  # fmt: skip
rule(
    local.attend, kind=OpKind.PRODUCT,
    spec=_scores_spec, linear=["weights", "value"], passes=False,
)  # fmt: skip


def _causal_places(call: Call, sharding: Sharding) -> LocalCall:
    rows, columns = sharding.factors["l"], sharding.factors["s"]
    return call.replace(rows=place(rows), columns=place(columns))


rule(local.causal_fill, spec="b... l s -> b... l s", localize=_causal_places)
