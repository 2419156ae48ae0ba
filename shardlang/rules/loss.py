"""Losses: a mean is the sum over all shards by the count over all shards."""

from __future__ import annotations

import math

import torch
from torch import fx

from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local
from shardlang.rules.call import Call
from shardlang.rules.indexed import classes
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.shapes import aligned, signature
from shardlang.rules.softmax import in_dtype, in_wide, shifted
from shardlang.rules.writing import broadcast_shape, tensor
from shardlang.rules.writing import names as names_of

aten = torch.ops.aten

NONE, MEAN, SUM = 0, 1, 2
"""ATen's numbers of the reductions (`at::Reduction`)."""


def _common(call: Call) -> tuple[int, ...]:
    return broadcast_shape(call.shapes)


def _elementwise(call: Call) -> str:
    """One term for each element, then nothing, a sum, or a mean of them."""
    shape, mark = _common(call), "~" if call.integer("reduction") == MEAN else ""
    operands = [tensor(n if n == "1" else n + mark for n in aligned(s, shape)) for s in call.shapes]
    return signature(
        operands, [tensor(names_of(len(shape)) if call.integer("reduction") == NONE else [])]
    )


def _mean_of_sum(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """The loss with reduction `sum`, over the global number of terms."""
    target, args, kwargs = call.replace(reduction=SUM)
    return emit(aten.div.Tensor, emit(target, *args, **kwargs), math.prod(_common(call)))


rule(
    aten.mse_loss, aten.l1_loss, aten.smooth_l1_loss, aten.huber_loss, aten.kl_div,
    aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits, aten.soft_margin_loss,
    aten.poisson_nll_loss, aten.hinge_embedding_loss, aten.margin_ranking_loss,
    spec=_elementwise, lower=_mean_of_sum,
)  # fmt: skip


def _class_dim(call: Call) -> int:
    return 0 if len(call.shapes[0]) == 1 else 1


def _is_index(call: Call) -> bool:
    return not tensor_of(call.operand("target")).is_floating_point()


def _classified(call: Call) -> str:
    """Scores `n c d...`, targets without `c` or, as probabilities, with it; weights `c`."""
    place, names = _class_dim(call), names_of(len(call.shapes[0]))
    rest = [name for i, name in enumerate(names) if i != place]
    mark = "~" if call.integer("reduction") == MEAN else ""
    scores = [name + ("~" if i == place else mark) for i, name in enumerate(names)]
    target = rest if _is_index(call) else names
    result = tensor(rest if call.integer("reduction") == NONE else [])
    weight = [names[place]] if call.has("weight") else []
    return signature([tensor(scores), tensor(target), *weight], [result])


def _divisor(call: Call, emit: Emit) -> fx.Node | int:
    """What a mean divides by: the weights, or the number, of the targets that count."""
    if not _is_index(call):
        return math.prod(call.shapes[0]) // call.shapes[0][_class_dim(call)]
    counted = emit(aten.ne.Scalar, call.operand("target"), call.integer("ignore_index"))
    if call.has("weight"):
        counted = _weights(call, emit)
    every = list(range(call.rank("target")))
    return emit(aten.sum.dim_IntList, counted, every) if every else counted


def _known_target(call: Call, emit: Emit) -> tuple[fx.Node, fx.Node]:
    """Targets with a valid class in place of the ignored one, and which are ignored."""
    ignored = emit(aten.eq.Scalar, call.operand("target"), call.integer("ignore_index"))
    return emit(aten.masked_fill.Scalar, call.operand("target"), ignored, 0), ignored


def _weights(call: Call, emit: Emit) -> fx.Node:
    """The weight of each target's class, zero for ignored ones."""
    target, ignored = _known_target(call, emit)
    found = emit(local.lookup, call.operand("weight"), target)
    return emit(aten.masked_fill.Scalar, found, ignored, 0)


def _weighted(call: Call, emit: Emit, terms: fx.Node) -> fx.Node:
    """One term for each target, times its weight, zero where it is ignored."""
    _, ignored = _known_target(call, emit)
    terms = emit(aten.masked_fill.Scalar, terms, ignored, 0)
    return emit(aten.mul.Tensor, terms, _weights(call, emit)) if call.has("weight") else terms


def _class_weights(call: Call, emit: Emit) -> fx.Node:
    """The class weights, shaped to multiply the scores."""
    shape = [1] * call.rank("self")
    shape[_class_dim(call)] = -1
    return emit(aten.view.default, call.operand("weight"), shape)


def _over_classes(call: Call, emit: Emit, terms: fx.Node) -> fx.Node:
    """The weighted sum of `terms` over the classes."""
    if call.has("weight"):
        terms = emit(aten.mul.Tensor, terms, _class_weights(call, emit))
    return emit(aten.sum.dim_IntList, terms, [_class_dim(call)])


def _terms_of_indices(call: Call, emit: Emit, moved: fx.Node, log_total: fx.Node) -> fx.Node:
    """Cross-entropy of class indices from shifted scores and the logarithm of their global sum."""
    place, smooth = _class_dim(call), call.number("label_smoothing", 0.0)
    target, ignored = _known_target(call, emit)
    flat = emit(aten.squeeze.dims, log_total, [place])
    chosen = emit(local.pick, moved, target, place)
    terms = _weighted(call, emit, emit(aten.sub.Tensor, flat, chosen))
    if not smooth:
        return terms
    logs = emit(aten.sub.Tensor, log_total, moved)
    spread = emit(aten.masked_fill.Scalar, _over_classes(call, emit, logs), ignored, 0)
    return emit(
        aten.add.Tensor,
        emit(aten.mul.Tensor, terms, 1 - smooth),
        emit(aten.mul.Tensor, spread, smooth / call.shape("self")[place]),
    )


def _terms_of_probabilities(call: Call, emit: Emit, moved: fx.Node, log_total: fx.Node) -> fx.Node:
    """Cross-entropy of class probabilities."""
    target, smooth = call.operand("target"), call.number("label_smoothing")
    if smooth:
        share = smooth / call.shape("self")[_class_dim(call)]
        target = emit(aten.add.Tensor, emit(aten.mul.Tensor, target, 1 - smooth), share)
    logs = emit(aten.sub.Tensor, log_total, moved)
    return _over_classes(call, emit, emit(aten.mul.Tensor, logs, target))


def _finished(call: Call, emit: Emit, terms: fx.Node) -> fx.Node:
    """The terms, summed if the loss is; cast to its dtype."""
    every = list(range(len(tensor_of(terms).shape)))
    if call.integer("reduction") == SUM and every:
        terms = emit(aten.sum.dim_IntList, terms, every)
    return in_dtype(emit, terms, call.results[0].dtype)


def _mean(call: Call, emit: Emit) -> fx.Node:
    """The sum of the terms of all shards over what all shards count."""
    target, args, kwargs = call.replace(reduction=SUM)
    total = emit(target, *args, **kwargs)
    return emit(aten.div.Tensor, total, _divisor(call, emit))


def _lower_cross_entropy(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    if call.integer("reduction") == MEAN:
        return _mean(call, emit)
    moved, _ = shifted(emit, in_wide(emit, call.operand("self")), [_class_dim(call)])
    powers = emit(aten.exp.default, moved)
    total = emit(aten.sum.dim_IntList, powers, [_class_dim(call)], True)
    log_total = emit(aten.log.default, total)
    terms = _terms_of_indices if _is_index(call) else _terms_of_probabilities
    return _finished(call, emit, terms(call, emit, moved, log_total))


rule(
    aten.cross_entropy_loss,
    spec=_classified, lower=_lower_cross_entropy, kind=OpKind.LOSS, indexes=classes,
)  # fmt: skip


def _lower_nll(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """nll_loss: the scores are logarithms already."""
    if call.integer("reduction") == MEAN:
        return _mean(call, emit)
    target, _ = _known_target(call, emit)
    chosen = emit(local.pick, call.operand("self"), target, _class_dim(call))
    terms = _weighted(call, emit, emit(aten.neg.default, chosen))
    return _finished(call, emit, terms)


rule(
    aten.nll_loss, aten.nll_loss2d, aten.nll_loss_nd,
    spec=_classified, lower=_lower_nll, kind=OpKind.LOSS, indexes=classes,
)  # fmt: skip


def _by_sample(call: Call) -> str:
    """Losses over rows of features: the features stay whole."""
    mark = "~" if call.integer("reduction") == MEAN else ""
    batched = len(call.shapes[0]) > 1
    operands = []
    for slot, shape in zip(call.slots, call.shapes, strict=True):
        names = [f"n{mark}", "c!"][-len(shape) :]
        if len(shape) == 1:
            by_class = slot.name in ("weight", "self") or not batched
            names = ["c!"] if by_class else [f"n{mark}"]
        if not batched and slot.name == "target" and shape != call.shapes[0]:
            names = ["t!"]
        operands.append(tensor(names if shape else []))
    result = ["n"] if call.integer("reduction") == NONE and call.out else []
    return signature(operands, [tensor(result)])


def _mean_of_rows(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    target, args, kwargs = call.replace(reduction=SUM)
    return emit(aten.div.Tensor, emit(target, *args, **kwargs), call.shapes[0][0])


rule(
    aten.cosine_embedding_loss, aten.triplet_margin_loss, aten.multi_margin_loss,
    aten.multilabel_margin_loss, spec=_by_sample, lower=_mean_of_rows,
)  # fmt: skip
