"""The rule of one op overload, and what it says of a call.

OpRule("b... i, o i, +o? -> b... o", linear=["input bias", "weight bias"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import fx

from shardlang.ir.collective import ReduceOp
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Product, Rule, Sharding
from shardlang.ir.traits import OpKind, Picks, Traits
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.indexed import Indexed
from shardlang.rules.notation import bind
from shardlang.rules.schema import Operator, read_aliases, short_name, tensor_arguments


class Emit(Protocol):
    """Adds one op to the graph in a lowering and returns its node."""

    def __call__(self, target: Operator, *args: object, **kwargs: object) -> fx.Node: ...


class Streams(Protocol):
    """Hands out the streams of a program whose shards draw apart."""

    def take(self) -> tuple[fx.Node, int]:
        """The key of the run, and the number of the next draw."""
        ...


Spec = str | Callable[[Call], str]
Localize = Callable[[Call, Sharding], LocalCall]
LocalizeFast = Callable[[Call, Sharding, Streams], LocalCall]
Lowered = fx.Node | tuple[fx.Node, ...]
Lower = Callable[[Call, Sharding, Emit], Lowered]
Linear = Sequence[str] | Callable[[Call], Sequence[str]]


@dataclass(frozen=True, slots=True)
class OpRule:
    """The rule of one op overload.

    Attributes:
        spec: the factor notation, or a function that writes it for a call.
        linear: sets of argument names in which the op is jointly linear; `tensors.0` names one
            tensor of a list. A set is dropped where one of its arguments is a number other than
            zero (a constant term), or is not widened losslessly into the result.
        localize: rewrites the arguments that hold global sizes; default: none do.
        always: whether `localize` does so where the op is not split, too: it has arguments that a
            program cannot hold.
        fast: for a random op, the same where shards draw from streams of their own; an op without
            one draws in the exact mode always.
        fast_spec: the notation where shards draw apart, if it is another one.
        lower: rewrites the op into simpler ones where a `~` factor is split.
        name: what the op is called where that is not its own name.
        kind: what it does, where something is decided or said by that.
        view: whether its results lie in the memory of its operands; default: as its schema says.
        moves: whether every element of its results is one of its first operand; default: a view.
        keeps: the arguments, and `result` or `result.1`, whose values its backward reads; default:
            what follows from `linear`.
        others: notations of a call in other factors, tried in order for a layout that `spec`
            cannot read; the lowering of their `~` factors only repeats operands.
        flops: the products of matrices in the op, each by the operands (and `result`) whose factors
            it multiplies and adds over, `["result weight"]`; default: of a product, its operands in
            turn.
        picks: the factor that numbers the rows of a table, and the argument that says which of them
            each row of the results picks, `"e groups"`.
        indexes: the operands that count something, with the numbers that they may hold.
    """

    spec: Spec
    linear: Linear = ()
    localize: Localize | None = None
    always: bool = False
    fast: LocalizeFast | None = None
    fast_spec: Spec | None = None
    lower: Lower | None = None
    others: Callable[[Call], Sequence[str]] | None = None
    reduce: ReduceOp = ReduceOp.SUM
    passes: bool = True
    random: bool | Callable[[Call], bool] = False
    detached: bool = False
    name: str = ""
    kind: OpKind = OpKind.OTHER
    view: bool | Callable[[Call], bool] | None = None
    moves: bool | None = None
    keeps: str | Callable[[Call], str] | None = None
    indexes: Callable[[Call], Iterable[Indexed]] | None = None
    flops: Sequence[str] | Callable[[Call], Sequence[str]] | None = None
    picks: str = ""

    def draws(self, call: Call) -> bool:
        """Whether a call draws random numbers."""
        return self.random(call) if callable(self.random) else self.random

    def bind(self, call: Call, fast: bool = False) -> Rule:
        """The rule of one call; if `fast`, shards draw random numbers apart.

        Raises:
            NotationError: the rule does not fit the call.
        """
        spec = self.fast_spec if fast and self.fast_spec is not None else self.spec
        found = self._bind(call, spec if isinstance(spec, str) else spec(call))
        others = self.others(call) if self.others is not None else ()
        rules = (replace(self._bind(call, text), notation=n) for n, text in enumerate(others, 1))
        return replace(found, others=tuple(rules)) if others else found

    def _bind(self, call: Call, text: str) -> Rule:
        sets = self._linear(call)
        bound = bind(
            text,
            call.shapes,
            call.result_shapes,
            present=_present(text, call),
            linear=[_operand_set(names, call) for names in sets if _additive(names, call)],
            reduce=self.reduce,
            passes=self.passes,
            random=self.draws(call),
            detached=self.detached,
        )
        return replace(bound, traits=self.traits(call), products=self._products(call, bound))

    def _products(self, call: Call, bound: Rule) -> tuple[Product, ...]:
        """The products of matrices."""
        products = self.flops(call) if callable(self.flops) else self.flops
        if products is None:
            return bound.in_turn() if self.kind is OpKind.PRODUCT else ()
        return tuple(_product(names, call, bound) for names in products)

    def _linear(self, call: Call) -> Sequence[str]:
        return self.linear(call) if callable(self.linear) else self.linear

    def traits(self, call: Call) -> Traits:
        """What is known of a call beside how its dims may be split."""
        memory = self._memory(call)
        moves = self.moves if self.moves is not None else set(memory) == {0}
        sets = (_operand_set(names, call) for names in self._linear(call))
        kept = self.keeps(call) if callable(self.keeps) else self.keeps
        return Traits(
            name=self.name or short_name(call.target),
            kind=self.kind,
            memory=memory,
            moves=moves,
            affine=tuple(one for one in sets if one),
            keeps=None if kept is None else _operand_set(kept, call),
            kept_results=_kept_results((kept or "").split(), len(call.results)),
            picks=self._picks(call),
        )

    def _picks(self, call: Call) -> Picks | None:
        """The table, and the operand that picks from it."""
        if not self.picks:
            return None
        table, chooser = self.picks.split()
        (slot,) = _operand_set(chooser, call)
        return Picks(table, slot)

    def _memory(self, call: Call) -> tuple[int | None, ...]:
        """For each result the operand in whose memory it lies."""
        is_view = self.view(call) if callable(self.view) else self.view
        aliased = _aliased(call)
        places = range(len(call.results))
        if is_view is False or not call.slots or (is_view is None and aliased is None):
            return tuple(None for _ in places)
        if aliased is None and len(call.slots) == len(call.results):
            return tuple(places)
        return tuple(aliased or 0 for _ in places)


def _aliased(call: Call) -> int | None:
    """The operand in whose memory the results of an op lie, as its schema says."""
    marked = read_aliases(call.target)
    return next((i for i, slot in enumerate(call.slots) if slot.name in marked), None)


def _kept_results(names: Sequence[str], count: int) -> frozenset[int]:
    """The results among what is kept: all of them for `result`, one for `result.1`."""
    if "result" in names:
        return frozenset(range(count))
    return frozenset(i for i in range(count) if f"result.{i}" in names)


def _product(names: str, call: Call, bound: Rule) -> Product:
    """A product of some operands; where the first result is named, of the others too."""
    named = sorted(_operand_set(names, call))
    places = (i for i, operand in enumerate(bound.operands) if not operand.added)
    others = frozenset(places) - frozenset(named)
    sides = (frozenset(named[:1]), others if "result" in names.split() else frozenset(named[1:]))
    return Product(_factors(names, call, bound), sides)


def _factors(names: str, call: Call, bound: Rule) -> frozenset[str]:
    """The factors of some operands, and of the first result if it is named."""
    found = [bound.operands[i].factors for i in _operand_set(names, call)]
    if "result" in names.split():
        found.append(frozenset(f for dim in bound.results[0] for block in dim for f in block))
    return frozenset().union(*found)


def _operand_set(names: str, call: Call) -> frozenset[int]:
    wanted = names.split()
    return frozenset(
        i
        for i, slot in enumerate(call.slots)
        if slot.name in wanted or f"{slot.name}.{slot.index}" in wanted
    )


def _additive(names: str, call: Call) -> bool:
    """Whether the op maps sums of these operands to sums of results, in their dtypes too."""
    numbers = [call.get(name) for name in names.split()]
    if any(isinstance(n, (int, float, complex)) and n != 0 for n in numbers):
        return False
    which = _operand_set(names, call)
    result = call.results[0].dtype
    return bool(which) and all(widens(tensor_of(call.slots[i].node).dtype, result) for i in which)


def widens(src: torch.dtype, dst: torch.dtype) -> bool:
    """Whether a cast keeps sums: to the same or a wider dtype of the same kind."""
    if src is torch.bool or dst is torch.bool:
        return False
    if src.is_floating_point and dst.is_floating_point:
        one, other = torch.finfo(src), torch.finfo(dst)
        return other.eps <= one.eps and other.max >= one.max
    exact = src.is_floating_point or src.is_complex
    inexact = dst.is_floating_point or dst.is_complex
    return exact == inexact and torch.promote_types(src, dst) == dst


def _present(text: str, call: Call) -> list[bool] | None:
    """Which tensor arguments of the schema the call has, for strings with optional operands."""
    if "?" not in text:
        return None
    return [call.has(name) for name in tensor_arguments(call.target)]
