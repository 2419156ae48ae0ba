"""What a rule says of an op beside how its dims may be split, compared with what the op does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from shardlang.ir.arguments import tensors_in
from shardlang.ir.compat import storage_key
from shardlang.ir.graph import sharding_of
from shardlang.ir.rule import Rule
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.picks import wrong_picks
from shardlang.rules.zeros import maps_zeros


def wrong_traits(call: AtenCall, node: fx.Node) -> Iterator[str]:
    """What of the traits of one call is not so; `node` is the call, bound to its rule."""
    rule = sharding_of(node).rule
    operands = [x.detach().clone(memory_format=torch.contiguous_format) for x in call.tensors]
    results = tensors_in(call.run(operands))
    yield from _wrong_memory(operands, results, rule)
    if rule.traits.moves:
        yield from _wrong_moves(operands, results)
    if not rule.random and torch.Tag.nondeterministic_seeded in getattr(call.target, "tags", ()):
        yield from _wrong_draws(call, operands)
    if not rule.detached:
        yield from _wrong_keeps(call, rule)
    yield from wrong_picks(node, operands, results)
    if not call.is_unset and maps_zeros(node, frozenset(range(len(rule.operands)))):
        yield from _wrong_zeros(call, operands)


def _wrong_memory(operands: list[Tensor], results: list[Tensor], rule: Rule) -> Iterator[str]:
    """Whether results lie in the memory of the operands in which they are said to lie."""
    keys = {storage_key(x): i for i, x in enumerate(operands) if x.numel()}
    for place, (result, stated) in enumerate(zip(results, rule.traits.memory, strict=True)):
        found = keys.get(storage_key(result))
        if result.numel() and found != stated:
            yield f"result {place} lies in the memory of operand {found}, not {stated}"


def _wrong_moves(operands: list[Tensor], results: list[Tensor]) -> Iterator[str]:
    """Whether all elements of the results are elements of the first operand."""
    for place, result in enumerate(results):
        if result.is_complex():
            continue
        before, after = (_comparable(x) for x in (operands[0].to(result.dtype), result))
        if not torch.isin(after, before).logical_or(after.isnan()).all():
            yield f"result {place} holds other elements than the first operand"


def _comparable(x: Tensor) -> Tensor:
    return x.to(torch.uint8) if x.dtype is torch.bool else x


def _wrong_draws(call: AtenCall, operands: list[Tensor]) -> Iterator[str]:
    """Whether a call that draws no random numbers gives the same under all seeds."""
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(tensors_in(call.run(operands)))
    if any(not torch.equal(one, other) for one, other in zip(*runs, strict=True)):
        yield "the call draws random numbers"


def _wrong_zeros(call: AtenCall, operands: list[Tensor]) -> Iterator[str]:
    """Whether the call gives zeros where all its operands are zero."""
    with_numbers = [x for x in operands if x.dtype is not torch.bool]
    if all(x.is_floating_point() or x.is_complex() for x in with_numbers):
        results = tensors_in(call.run([torch.zeros_like(x) for x in operands]))
        if any(x.to(torch.complex128).nan_to_num().any() for x in results):
            yield "zeros give other numbers than zero"


def _wrong_keeps(call: AtenCall, rule: Rule) -> Iterator[str]:
    """Whether the backward reads other operands and results than it is said to read."""
    operands = [x.detach().clone() for x in call.tensors]
    wanted = [i for i, x in enumerate(operands) if x.is_floating_point() or x.is_complex()]
    for index in wanted:
        operands[index].requires_grad_()
    saved: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, note):
            results = tensors_in(call.run(operands))
    except (RuntimeError, NotImplementedError):
        return
    if not any(x.requires_grad for x in results):
        return
    keys = {storage_key(x) for x in saved if x.numel() > 1}
    read = {i for i, x in enumerate(operands) if storage_key(x) in keys}
    shared = {storage_key(x) for x in operands}
    made = {i for i, x in enumerate(results) if storage_key(x) in keys - shared}
    if not read <= rule.kept(wanted) or not made <= rule.traits.kept_results:
        stated = (sorted(rule.kept(wanted)), sorted(rule.traits.kept_results))
        yield f"the backward reads operands {sorted(read)} and results {sorted(made)}, not {stated}"
