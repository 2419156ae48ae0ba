"""What operations on sharded tensors do: three rules for all of them.

1. An operation that handles every element by itself works on the shards. Operands that lie
   otherwise, whole tensors among them, are cut first.
2. A norm adds up the shards, each counted once, in one all-reduce; so does a gradient scaler's
   search for infinities.
3. Everything else works on the whole tensors, gathered for it, and gives whole tensors; what it
   writes goes back into the shards.

So every operation means what it means in the plain model. A view of a split tensor cannot share its
memory: it is a copy that refuses to be written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import OpOverload, route_operations, tree_map_only
from shardlang.ir.layout import Layout
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.outside import outside
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import Sharded, replicated, sharded
from shardlang.runtime.tensor_shards import Lead, ShardedBase, is_sharded, plain, shard
from shardlang.runtime.tensor_special import SPECIAL

_ALIKE = {
    "copy_", "_to_copy", "zero_", "zero", "fill_", "fill", "zeros_like", "ones_like", "full_like",
    "empty_like", "detach", "detach_", "alias", "lift_fresh", "masked_fill_", "masked_fill",
    "copysign_", "_fused_adam", "_fused_adamw", "_fused_sgd", "_fused_adagrad", "_fused_adam_",
    "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_", "isinf", "nan_to_num_", "contiguous",
}  # fmt: skip
"""Operations on every element by itself that torch does not mark as such."""

_LISTS_NOT_ALIKE = {"_foreach_norm", "_foreach_max", "_foreach_mm", "_foreach_powsum"}


@dataclass(frozen=True, slots=True)
class _Traits:
    """What an operation is: `written` are the places of its arguments that it writes to."""

    elementwise: bool
    view: bool
    written: tuple[int | str, ...]


@lru_cache(maxsize=4096)
def _traits(op: OpOverload) -> _Traits:
    schema = op._schema
    name = schema.name.removeprefix("aten::")
    random = torch.Tag.nondeterministic_seeded in op.tags
    alike = torch.Tag.pointwise in op.tags or name in _ALIKE
    listed = name.startswith("_foreach_") and name not in _LISTS_NOT_ALIKE
    marks = [
        (a.name if a.kwarg_only else i, a.alias_info)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None
    ]
    written = [at for at, mark in marks if mark.is_write]
    # Torch marks `equal` as such too, whose answer is one for the whole tensors.
    each = (alike or listed) and all("Tensor" in str(x.type) for x in schema.returns)
    return _Traits(each and not random, bool(marks) and not written, tuple(written))


@outside
def dispatch(op: OpOverload, args: Args, kwargs: Kwargs) -> object:
    """An operation with a sharded tensor among its arguments."""
    if op.namespace != "aten":
        raise _beyond(op)
    special = SPECIAL[op](op, *args, **kwargs) if op in SPECIAL else NotImplemented
    if special is not NotImplemented:
        return special
    traits = _traits(op)
    written = [kwargs.get(at) if isinstance(at, str) else _at(args, at) for at in traits.written]
    _refuse_copies(op, written)
    leads = _leads([*args, *kwargs.values()], written) if traits.elementwise else None
    if leads is None:
        return _on_whole(op, args, kwargs, written)
    return _on_shards(op, args, kwargs, leads, written)


def _beyond(op: OpOverload) -> RunError:
    return RunError(
        "SH0620",
        f"`{op._schema.name}` does not know how a sharded tensor lies",
        help="gradients are those of the whole batch already, and `p.full_tensor()` gathers; use"
        " `p.to_local()` for work on this device's shard",
    )


def _at(args: Args, place: int) -> object:
    return args[place] if place < len(args) else None


def _refuse_copies(op: OpOverload, written: Sequence[object]) -> None:
    for value in written:
        for x in _row(value):
            if is_sharded(x) and x.copied:
                raise RunError(
                    "SH0620",
                    f"`{op._schema.name.removeprefix('aten::')}` writes to a view of a sharded"
                    " tensor, and would not reach the tensor",
                    help="write to all of it: `new = p.full_tensor()`, change `new`, then"
                    " `p.copy_(new)` under `torch.no_grad()`",
                )


def _leads(values: Sequence[object], written: Sequence[object]) -> list[Lead] | None:
    """The sharding that results have, for each entry of lists; None if shards do not do."""
    lists = [v for v in values if isinstance(v, (list, tuple)) and v and _tensors(v)]
    if not lists:
        lead = _lead([v for v in values if isinstance(v, Tensor)])
        return None if lead is None or not _fits(written, [lead]) else [lead]
    count = max(len(v) for v in lists)
    rows = [[v[i] for v in lists if len(v) == count] for i in range(count)]
    leads = [_lead(row) if any(is_sharded(x) for x in row) else None for row in rows]
    pairs = zip(leads, rows, strict=True)
    lost = any(lead is None and any(is_sharded(x) for x in row) for lead, row in pairs)
    return leads if not lost and _fits(written, leads) else None


def _tensors(values: Sequence[object]) -> bool:
    return all(isinstance(x, Tensor) for x in values)


def _lead(row: Sequence[Tensor]) -> Lead:
    """The sharding of an operand that is as large as the result, if one is."""
    try:
        shape = torch.broadcast_shapes(*(x.shape for x in row))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return next((x.sharding for x in row if is_sharded(x) and x.shape == shape), None)


def _fits(written: Sequence[object], leads: Sequence[Lead]) -> bool:
    """Whether all that is written lies as the results do."""
    for value in written:
        row = value if isinstance(value, (list, tuple)) else [value] * len(leads)
        if len(row) != len(leads):
            continue
        for x, lead in zip(row, leads, strict=True):
            if lead is not None and not (is_sharded(x) and x.sharding.same(lead)):
                return False
    return True


def _on_shards(
    op: OpOverload, args: Args, kwargs: Kwargs, leads: Sequence[Lead], written: Sequence[object]
) -> object:
    """Rule 1."""
    many = op._schema.name.startswith(("aten::_foreach_", "aten::_fused_"))

    def shards(value: object) -> object:
        if isinstance(value, Tensor):
            return shard(value, leads[0]) if not many else plain(value)
        if isinstance(value, (list, tuple)) and len(value) == len(leads) and _tensors(value):
            return [shard(x, lead) for x, lead in zip(value, leads, strict=True)]
        return value

    out = op(*map(shards, args), **{name: shards(x) for name, x in kwargs.items()})
    if written:
        _count_writes(written)
        return None if out is None or not op._schema.returns else written[0]
    copied = any(is_sharded(x) and x.copied for x in args)
    if isinstance(out, (list, tuple)):
        row = leads if many else list(leads) * len(out)
        return type(out)(_around(x, lead, False) for x, lead in zip(out, row, strict=True))
    return _around(out, leads[0], copied and _traits(op).view)


def _count_writes(written: Sequence[object]) -> None:
    """Let autograd see what was written: below it, writes to the shards do not count.

    So a backward whose forward saw the values from before is refused, as in the plain model.
    """
    for value in written:
        held = [x._local_tensor for x in _row(value) if is_sharded(x)]
        torch.autograd.graph.increment_version(held)


def _row(value: object) -> Sequence[object]:
    """The tensors of one argument."""
    return value if isinstance(value, (list, tuple)) else (value,)


def _around(out: object, lead: Lead, copied: bool) -> object:
    if lead is None or not isinstance(out, Tensor):
        return out
    return sharded(out, lead, copied=copied)


def _on_whole(op: OpOverload, args: Args, kwargs: Kwargs, written: Sequence[object]) -> object:
    """Rule 3."""
    wholes: dict[int, Tensor] = {}

    def gathered(value: Tensor) -> Tensor:
        if id(value) not in wholes:
            wholes[id(value)] = plain(value)
        return wholes[id(value)]

    out = op(*tree_map_only(Tensor, gathered, args), **tree_map_only(Tensor, gathered, kwargs))
    for value in written:
        for x in _row(value):
            if is_sharded(x):
                _write_back(x, wholes[id(x)])
            elif isinstance(x, DTensor):
                raise _foreign(x)
    if written:
        _count_writes(written)
        return None if out is None or not op._schema.returns else written[0]
    source = next((x for x in args if is_sharded(x)), None)
    if _traits(op).view and source is not None:
        return tree_map_only(Tensor, lambda x: _view(x, source), out)
    return out


def _foreign(x: DTensor) -> RunError:
    return RunError(
        "SH0620",
        f"a DTensor that lies as {x.placements} cannot take the result of an operation with a"
        " sharded tensor that lies elsewhere",
        help="give it the sharded tensor's layout: `torch.zeros_like(p).copy_(x)`",
    )


def _write_back(into: ShardedBase, full: Tensor) -> None:
    if full.shape != into.shape:
        raise RunError(
            "SH0620",
            f"a sharded tensor of {list(into.shape)} cannot become one of {list(full.shape)}",
            help="do it to a whole tensor, and copy that: `whole = p.full_tensor()`, then"
            " `torch.nn.init.orthogonal_(whole)`, say, then `p.copy_(whole)`, under"
            " `torch.no_grad()`",
        )
    if full is not into._local_tensor:
        into._local_tensor.copy_(into.sharding.cut(full))


def _view(out: Tensor, source: ShardedBase) -> Sharded:
    """A view: of the memory where every device holds all of it, of a copy otherwise."""
    where = replicated(out.shape, source.sharding)
    return sharded(out, where, copied=source.copied or source.sharding.split)


def install(groups: Groups) -> None:
    """Give sharded tensors their operations. Collective."""
    Sharded.operations = staticmethod(dispatch)
    if groups.mesh.devices > 1 and not isinstance(_probe(groups).detach(), Sharded):
        route_operations(is_sharded, dispatch)


def _probe(groups: Groups) -> Sharded:
    return sharded(torch.zeros(()), Sharding(Layout.whole(()), groups))
