"""Whether what a graph's text says of a node can be said of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from shardlang.ir.graph import is_item, is_reshard
from shardlang.ir.layout import Layout
from shardlang.ir.parse_clauses import Said
from shardlang.ir.parse_error import GraphTextError
from shardlang.ir.records import Stated
from shardlang.ir.rule import Rule
from shardlang.ir.text import Stage

OF_SPLITS = ("notation", "split", "passes", "because", "closed")
OF_LABELS = ("labelled", "unlabelled")
APART = (("labelled", "unlabelled"), ("gradient", "no_gradient"))


def check_said(node: fx.Node, said: Said, level: Stage, layouts: Sequence[Layout]) -> None:
    """Refuse clauses that a node of this kind, in a graph of this stage, does not have.

    Raises:
        GraphTextError: what the clause says would be lost.
    """
    split = level in (Stage.SPLIT, Stage.LABELLED) and not is_item(node) and not is_reshard(node)
    labelled = level in (Stage.LABELLED, Stage.PROGRAM)
    for word, place in said.places.items():
        first = word.split(" ")[0]
        if first in OF_SPLITS and not split:
            remedy = "it belongs to a leaf or an op of `graph split` or `graph labelled`"
            raise GraphTextError(f"`{first}` says nothing here", remedy, place)
        if first == "from" and not is_reshard(node):
            remedy = "it belongs to a reshard"
            raise GraphTextError(f"`{first}` says nothing here", remedy, place)
        if first in OF_LABELS and not labelled:
            remedy = "it belongs to `graph labelled`, or to a program"
            raise GraphTextError(f"`{first}` says nothing here", remedy, place)
    for one, other in APART:
        if {one, other} <= said.flags:
            remedy = "leave one out"
            raise GraphTextError(f"`{one}` and `{other}` exclude each other", remedy)
    _check_shapes(said, layouts)


def _check_shapes(said: Said, layouts: Sequence[Layout]) -> None:
    """Refuse layouts of other shapes than the value's."""
    gather = said.record.full_gather
    ends = [gather.start, gather.widest, gather.end] if gather is not None else []
    if any(one.shape != layouts[0].shape for one in ends):
        remedy = "write three layouts of the node's shape"
        raise GraphTextError("the layouts have other shapes", remedy, said.places["within"])


def check_split(rule: Rule, said: Said) -> Rule:
    """The rule by which a node is split, if what the text says of it fits.

    Raises:
        GraphTextError: there is no such rule, factor or operand.
    """
    if not 0 <= said.notation <= len(rule.others):
        remedy = f"its rule has {len(rule.others)} others"
        place = said.places["notation"]
        raise GraphTextError(f"the op has no notation {said.notation}", remedy, place)
    rule = (rule, *rule.others)[said.notation]
    sizes = dict(rule.sizes)
    for name, dim in said.factors.items():
        if sizes.get(name) != dim.size:
            known = ", ".join(f"`{factor}` of {size}" for factor, size in sizes.items())
            wrong = f"the op has no factor `{name}` of {dim.size}"
            raise GraphTextError(wrong, f"its factors are {known}", said.places["split"])
    slots = {slot for passed in (said.linear or {}).values() for slot in passed}
    if not slots <= set(range(len(rule.operands))):
        remedy = f"it reads {len(rule.operands)}, counted from 0"
        raise GraphTextError("the op has no such operand", remedy, said.places["passes"])
    return rule


def stated(said: Said, layouts: Sequence[Layout]) -> Stated | None:
    """The stated layout, its open dims whole."""
    wanted = said.stated
    if wanted is None:
        return None
    if len(layouts) != 1:
        remedy = "state the layout of the result where it is picked"
        raise GraphTextError("the node is not one tensor", remedy, said.places["stated"])
    (layout,) = layouts
    if wanted.dims is None:
        return Stated(layout.unlabelled(), place=wanted.place)
    whole = Layout.whole(layout.shape).dims
    dims = tuple(
        full if dim is None else dim for dim, full in zip(wanted.dims, whole, strict=False)
    )
    if len(wanted.dims) != len(whole) or Layout(dims).shape != layout.shape:
        remedy = "write an entry for each dim, of its size; `?` leaves one open"
        raise GraphTextError("the stated layout has another shape", remedy, said.places["stated"])
    open_dims = frozenset(i for i, dim in enumerate(wanted.dims) if dim is None)
    return Stated(Layout(dims, wanted.partial), open_dims, wanted.place)
