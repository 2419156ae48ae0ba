"""The bytes that readers of one value move, forward and backward, each layout charged once.

A reader wants the value in a layout whose label says what comes back: along an axis in `varying`
the reader's gradient is a summand on every device. Other than `expected_bytes`, which knows no
labels, this counts no gradient of a gather that all devices read alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

from shardlang.cost.paths import NoPath, Path, find_path
from shardlang.cost.ring import sent_bytes
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import Change, Reshard

CALL = 0.25
"""What a call counts beside its bytes, in elements: of equal ways, that with the fewest calls."""


@functools.lru_cache(maxsize=65536)
def readings_bytes(have: Layout, wanted: frozenset[Layout], itemsize: int, diff: bool) -> float:
    """Bytes that bring a value into all layouts that are wanted, and their gradients back.

    Every layout is made from the cheapest one at hand, as `insert_reshards` makes it. Infinite
    where one cannot be reached.

    Args:
        have: the layout that the value is made in, labelled as its gradient is read.
        wanted: labelled layouts; those that differ in labels alone are made once.
        itemsize: bytes of one element.
        diff: whether a gradient flows back.
    """
    labels: dict[Layout, frozenset[Axis]] = {}
    for one in sorted(wanted, key=str):
        plain = one.unlabelled()
        labels[plain] = labels.get(plain, frozenset()) | one.varying
    total, known = 0.0, [have]
    for layout, varying in labels.items():
        sources = [(reading_bytes(one, layout, varying, itemsize, diff)) for one in known]
        total += min(sources)
        known.append(layout)
    return total


@functools.lru_cache(maxsize=65536)
def reading_bytes(
    have: Layout, goal: Layout, varying: frozenset[Axis], itemsize: int, diff: bool
) -> float:
    """Bytes of the cheapest way between two layouts and, where a gradient flows, of the way back.

    Args:
        varying: axes along which the gradient is a summand on every device.
    """
    try:
        path = find_path((have.unlabelled(),), goal, diff)[1]
    except NoPath:
        return math.inf
    calls = [sent_bytes(step.forward, itemsize) for step in path]
    calls += _back(path, have.varying, goal, varying, itemsize) if diff else []
    return sum(calls) + CALL * itemsize * sum(sent > 0 for sent in calls)


def _back(
    path: Path, free: frozenset[Axis], goal: Layout, varying: frozenset[Axis], itemsize: int
) -> list[int]:
    """Bytes of the gradients: a gather's is scattered if it is a sum, and sliced otherwise.

    Args:
        free: axes along which the value's own gradient may stay a sum.
    """
    calls, gathered = list[int](), set(free)
    for step in path:
        if step.kind is Change.SLICE and free.issuperset(step.axes):
            continue
        if step.kind is not Change.ALL_GATHER:
            calls.append(sent_bytes(step.adjoint, itemsize))
        elif varying.issuperset(step.axes):
            calls.append(sent_bytes(step.forward, itemsize))
            gathered.update(step.axes)
    left = tuple(sorted(varying - gathered))
    if left:
        whole = Layout(goal.dims)
        vary = Reshard(left, whole, Layout(goal.dims, varying=frozenset(left)))
        calls.append(sent_bytes(vary.adjoint, itemsize))
    return calls


def wanted_from(layout: Layout, axes: Iterable[Axis]) -> Layout:
    """What an op that is split over some axes wants of an operand, labelled.

    Args:
        layout: the operand's layout.
    """
    varying = frozenset(axes) - set(layout.sharded) - layout.partial
    return Layout(layout.dims, layout.partial, varying)
