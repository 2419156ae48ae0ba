"""A case by the run's own moves, in the simulator, against its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.runtime.lockstep import reshard_on_all, reshards_on_all, route_on_all
from tests.moves.cases import Case, One, Tensors


def simulated(case: Case) -> list[tuple[Tensors, Tensors | None]]:
    """Of every reshard, the results of all devices and the gradients of their operands."""
    fed = [operands(one) for one in case.ones]
    ys = _forward(case, fed)
    roots = [y for one, own in zip(case.ones, ys, strict=True) if one.grads for y in own]
    seeds = [g for one in case.ones for g in one.grads or ()]
    wanted = [x for one, own in zip(case.ones, fed, strict=True) if one.grads for x in own]
    found = iter(torch.autograd.grad(roots, wanted, seeds) if roots else ())
    return [
        ([y.detach() for y in own], [next(found) for _ in own] if one.grads else None)
        for one, own in zip(case.ones, ys, strict=True)
    ]


def operands(one: One) -> Tensors:
    """The operands of all devices, as leaves of autograd where it can be."""
    flows = one.reshard.reduce is ReduceOp.SUM
    return [
        x.detach().requires_grad_(flows and (x.is_floating_point() or x.is_complex()))
        for x in one.xs
    ]


def _forward(case: Case, fed: list[Tensors]) -> list[Tensors]:
    first = case.ones[0]
    if first.by is not None:
        known = [first.known(at) for at in case.mesh.coords()]
        return [route_on_all(first.reshard, fed[0], known, case.mesh)]
    if len(case.ones) == 1:
        return [reshard_on_all(first.reshard, fed[0], case.mesh)]
    by_device = [list(own) for own in zip(*fed, strict=True)]
    made = reshards_on_all([one.reshard for one in case.ones], by_device, case.mesh)
    return [list(own) for own in zip(*made, strict=True)]


def differences(case: Case) -> list[str]:
    """What of a case is not as it means; empty if all is."""
    try:
        found = simulated(case)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        return [f"{case}: {type(error).__name__}: {error}"]
    wrong = []
    for one, (ys, grads) in zip(case.ones, found, strict=True):
        want, back = one.expected(case.mesh)
        wrong += [f"{case}: forward, {each}" for each in unlike(ys, want)]
        wrong += [f"{case}: backward, {each}" for each in unlike(grads or [], back or [])]
    return wrong


def unlike(found: Sequence[Tensor], want: Sequence[Tensor]) -> Iterator[str]:
    """The devices whose tensors differ in shape, dtype or any bit."""
    for device, (mine, should) in enumerate(zip(found, want, strict=True)):
        if mine.shape != should.shape or mine.dtype != should.dtype:
            yield f"device {device}: {mine.dtype}{list(mine.shape)} for {list(should.shape)}"
        elif not torch.equal(mine, should):
            yield f"device {device}: other values"
