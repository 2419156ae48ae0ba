"""A case by the run's own moves, in the simulator, against its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shardlang.ir.collective import Collective
from shardlang.runtime.lockstep import carry_all, lowered, move_all, move_together
from tests.moves.cases import Case, One, Tensors


def simulated(case: Case) -> list[tuple[Tensors, Tensors | None]]:
    """Of every reshard, the results of all devices and the gradients of their operands."""
    made = _moved(case, case.ones, [one.reshard.forward for one in case.ones], operands(case.ones))
    flowing = [one for one in case.ones if one.grads]
    seeds = [one.grads or [] for one in flowing]
    found = iter(_moved(case, flowing, [one.reshard.adjoint for one in flowing], seeds))
    return [
        (ys, next(found) if one.grads else None) for one, ys in zip(case.ones, made, strict=True)
    ]


def operands(ones: Sequence[One]) -> list[Tensors]:
    """The operands of all devices, in memory of their own: a sum may be put there."""
    return [[x.clone() for x in one.xs] for one in ones]


def _moved(
    case: Case, ones: Sequence[One], ways: list[Collective], xs: list[Tensors]
) -> list[Tensors]:
    """One direction of each, sent together."""
    if not ones:
        return []
    if ones[0].by is not None:
        known = [ones[0].known(at) for at in case.mesh.coords()]
        return [carry_all(ways[0], xs[0], known, case.mesh)]
    moves = [lowered(way, case.mesh) for way in ways]
    if len(ways) == 1:
        return [move_all(moves[0], xs[0])]
    by_device = [list(own) for own in zip(*xs, strict=True)]
    made = move_together(list(zip(*moves, strict=True)), by_device)
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
