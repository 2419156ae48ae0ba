"""Sums of gradients that fill a value slice by slice: put together, not added.

The gradient of a slice is zero everywhere else. Where a value is read in slices that fill it, as
the halves that a rotary embedding turns or the parts of a packed projection, autograd adds as many
gradients of the whole size. One `cat` of the slices gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

import torch
from torch import fx

from shardlang.ir.arguments import Args

_ADD = torch.ops.aten.add.Tensor
_CAT = torch.ops.aten.cat.default
_SLICE = torch.ops.aten.slice_backward.default
_SELECT = torch.ops.aten.select_backward.default
_UNSQUEEZE = torch.ops.aten.unsqueeze.default

Add: TypeAlias = "Callable[[Callable[..., object], Args], fx.Node]"
"""Adds a call to the graph."""

Sum: TypeAlias = "Callable[[fx.Node, fx.Node, Add], fx.Node]"
"""Adds the sum of two gradients."""


def plain_sum(known: fx.Node, gradient: fx.Node, call: Add) -> fx.Node:
    """The sum of two gradients as one op."""
    return call(_ADD, (known, gradient))


@dataclass(frozen=True, slots=True)
class Piece:
    """A gradient that is zero but for one stretch of a dim.

    Attributes:
        made: the gradient of the slice.
        sizes: of the whole gradient, with functions of the device among them.
        start: where the stretch begins; `end` is behind it.
        alone: whether the slice is one index, which has no dim in `made`.
    """

    made: fx.Node
    sizes: tuple[object, ...]
    dim: int
    start: int
    end: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """One of the last terms of a sum.

    Attributes:
        before: the sum of the terms before it; None if there are none.
    """

    before: fx.Node | None
    piece: Piece


Terms = tuple[Term, ...]
"""Terms that follow each other, pieces of one dim of which no two overlap."""


class Fillings:
    """The sums of gradients whose last terms are pieces, by the node that gives the sum."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, Terms] = {}

    def add(self, known: fx.Node, gradient: fx.Node, call: Add) -> fx.Node:
        """The sum of two gradients of one value."""
        terms = self._terms(known, gradient)
        if terms and _fill(terms):
            whole, before = _joined(terms, call), terms[0].before
            return whole if before is None else plain_sum(before, whole, call)
        made = plain_sum(known, gradient, call)
        self._known[made] = terms
        return made

    def _terms(self, known: fx.Node, gradient: fx.Node) -> Terms:
        """The last terms of a sum of two gradients."""
        piece, first = _piece(gradient), _piece(known)
        if piece is None:
            return ()
        before = self._known.get(known, () if first is None else (Term(None, first),))
        apart = takewhile(lambda term: _stand_together(term.piece, piece), reversed(before))
        return (*reversed(list(apart)), Term(known, piece))


def _stand_together(one: Piece, other: Piece) -> bool:
    """Whether two pieces are of one dim of one gradient, and do not overlap."""
    if (one.dim, one.sizes) != (other.dim, other.sizes):
        return False
    return one.end <= other.start or other.end <= one.start


def _fill(terms: Terms) -> bool:
    """Whether pieces of which no two overlap fill the whole gradient."""
    first = terms[0].piece
    filled = sum(term.piece.end - term.piece.start for term in terms)
    return filled == first.sizes[first.dim]


def _piece(gradient: fx.Node) -> Piece | None:
    """What a gradient is a piece of, by numbers that are the same on all devices."""
    if gradient.target not in (_SLICE, _SELECT) or gradient.kwargs:
        return None
    made, sizes, dim, *place = gradient.args
    if not isinstance(made, fx.Node) or not isinstance(sizes, (list, tuple)):
        return None
    size = sizes[dim] if isinstance(dim, int) else None
    if not isinstance(size, int) or not isinstance(dim, int):
        return None
    numbers = [number for number in place if isinstance(number, int)]
    if len(numbers) < len(place):
        return None
    alone = gradient.target is _SELECT
    stretch = range(size)[numbers[0] :][:1] if alone else range(size)[slice(*numbers)]
    if stretch.step != 1 or not stretch:
        return None
    return Piece(made, tuple(sizes), dim % len(sizes), stretch.start, stretch.stop, alone)


def _joined(terms: Terms, call: Add) -> fx.Node:
    """The gradient that pieces fill, in one op."""
    ordered = sorted((term.piece for term in terms), key=lambda one: one.start)
    parts = [call(_UNSQUEEZE, (one.made, one.dim)) if one.alone else one.made for one in ordered]
    return call(_CAT, (parts, ordered[0].dim))
