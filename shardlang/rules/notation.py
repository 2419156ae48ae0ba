"""The factor notation of op rules.

    "b... i, o i, +o? -> b... o"

Operands are separated by commas, dims by spaces. A name is a factor; the same name is the same
factor. `b...` stands for any number of dims; `(h d)` for a dim of two factors, major to minor, one
of which may be given a size, `(h d=64)`; `[q|k]` for a dim that is one stretch after another; `1`
for a broadcast dim; `.` for a tensor of no dims. A leading `+` marks an operand that is added to
the contraction, a trailing `?` one that may be absent. `d!` must stay whole; `d~` may be sharded
only through the op's lowering. `y@x` is a factor of its own size that is split as `x` is.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shardlang.ir.collective import ReduceOp
from shardlang.ir.rule import DimSpec, Operand, Rule

_TOKEN = re.compile(r"\s*(->|\.\.\.|[A-Za-z_]\w*|\d+|[()\[\]|,+?!~=@.])")

Shape = tuple[int, ...]


class NotationError(ValueError):
    """A rule string that does not parse or does not fit the shapes of the call."""


class Refusal(NotationError):
    """A call that no rule can split as it stands: its result's shape depends on data, say."""


@dataclass(frozen=True, slots=True)
class _Name:
    name: str
    size: int | None = None
    many: bool = False


@dataclass(frozen=True, slots=True)
class _Dim:
    blocks: tuple[tuple[_Name, ...], ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    dims: tuple[_Dim, ...]
    added: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed rule string, not yet bound to shapes."""

    operands: tuple[_Tensor, ...]
    results: tuple[_Tensor, ...]
    whole: frozenset[str]
    lowered: frozenset[str]
    tied: tuple[tuple[str, str], ...]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.whole, self.lowered = text, set[str](), set[str]()
        self.tied: dict[tuple[str, str], None] = {}
        self.tokens: list[str] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise NotationError(f"bad character in rule {text!r} at {place}")
            self.tokens.append(match.group(1))
            place = match.end()
        self.place = 0

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise NotationError(f"expected {expected or 'more'!r}, got {token!r} in {self.text!r}")
        self.place += 1
        return token

    def accept(self, token: str) -> bool:
        if self.peek() == token:
            self.place += 1
            return True
        return False

    def template(self) -> Template:
        operands = self.tensors()
        self.take("->")
        results = self.tensors()
        if self.peek():
            raise NotationError(f"text left over in rule {self.text!r}: {self.peek()!r}")
        whole, lowered = frozenset(self.whole), frozenset(self.lowered)
        return Template(operands, results, whole, lowered, tuple(self.tied))

    def tensors(self) -> tuple[_Tensor, ...]:
        if self.peek() in ("->", ""):
            return ()
        found = [self.tensor()]
        while self.accept(","):
            found.append(self.tensor())
        return tuple(found)

    def tensor(self) -> _Tensor:
        added = self.accept("+")
        dims: list[_Dim] = []
        while self.peek() not in (",", "->", "", "?"):
            if self.accept("."):
                continue
            dims.append(self.dim())
        return _Tensor(tuple(dims), added, self.accept("?"))

    def dim(self) -> _Dim:
        if self.accept("["):
            blocks = [self.block()]
            while self.accept("|"):
                blocks.append(self.block())
            self.take("]")
            return _Dim(tuple(blocks))
        return _Dim((self.block(),))

    def block(self) -> tuple[_Name, ...]:
        if self.accept("1"):
            return ()
        if not self.accept("("):
            return (self.name(),)
        names = []
        while not self.accept(")"):
            if not self.accept("1"):
                names.append(self.name())
        return tuple(names)

    def name(self) -> _Name:
        name = self.take()
        if not name.isidentifier():
            raise NotationError(f"expected a factor, got {name!r} in rule {self.text!r}")
        many = self.accept("...")
        size = int(self.take()) if self.accept("=") else None
        if self.accept("!"):
            self.whole.add(name)
        elif self.accept("~"):
            self.lowered.add(name)
        if self.accept("@"):
            self.tied[self.take(), name] = None
        return _Name(name, size, many)


@functools.cache
def parse(text: str) -> Template:
    """Parse a rule string.

    Raises:
        NotationError: the text is not a rule.
    """
    return _Reader(text).template()


class _Binder:
    """Matches a template with shapes; collects the sizes of the factors."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sizes: dict[str, int] = {}
        self.many: dict[str, tuple[str, ...]] = {}

    def declare(self, tensor: _Tensor) -> None:
        for dim in tensor.dims:
            for block in dim.blocks:
                for name in block:
                    if name.size is not None:
                        self.put(name.name, name.size)

    def put(self, name: str, size: int) -> None:
        if self.sizes.setdefault(name, size) != size:
            raise NotationError(
                f"factor `{name}` is {self.sizes[name]} and {size} in {self.text!r}"
            )

    def tensor(self, tensor: _Tensor, shape: Shape) -> tuple[DimSpec, ...]:
        specs: list[DimSpec] = []
        rest = list(shape)
        for place, dim in enumerate(tensor.dims):
            name = dim.blocks[0][0] if dim.blocks[0] else None
            if name is not None and name.many:
                count = len(rest) - (len(tensor.dims) - place - 1)
                names = tuple(f"{name.name}{i}" for i in range(max(count, 0)))
                if self.many.setdefault(name.name, names) != names:
                    raise NotationError(f"`{name.name}...` has two ranks in {self.text!r}")
                for one in names:
                    specs.append(self.atomic(one, rest.pop(0)))
            elif not rest:
                raise NotationError(f"{self.text!r} has more dims than the shape {shape}")
            else:
                specs.append(self.dim(dim, rest.pop(0)))
        if rest:
            raise NotationError(f"{self.text!r} has fewer dims than the shape {shape}")
        return tuple(specs)

    def atomic(self, name: str, size: int) -> DimSpec:
        self.put(name, size)
        return ((name,),)

    def dim(self, dim: _Dim, size: int) -> DimSpec:
        names = [name.name for block in dim.blocks for name in block]
        unknown = [name for name in names if name not in self.sizes]
        if len(unknown) == 1:
            self.solve(dim, unknown[0], size)
        elif unknown:
            raise NotationError(f"sizes of {unknown} are not given in {self.text!r}")
        total = sum(math.prod(self.sizes[n.name] for n in block) for block in dim.blocks)
        if total != size:
            raise NotationError(f"a dim of {size} does not fit {names} in {self.text!r}")
        return tuple(tuple(name.name for name in block) for block in dim.blocks)

    def solve(self, dim: _Dim, unknown: str, size: int) -> None:
        for block in dim.blocks:
            known = math.prod(self.sizes[n.name] for n in block if n.name in self.sizes)
            if unknown not in (n.name for n in block):
                size -= known
                continue
            others = known
        self.put(unknown, size // others if others else 0)


def bind(
    text: str,
    operands: Sequence[Shape],
    results: Sequence[Shape],
    *,
    present: Sequence[bool] | None = None,
    linear: Sequence[frozenset[int]] = (),
    reduce: ReduceOp = ReduceOp.SUM,
    passes: bool = True,
    random: bool = False,
    detached: bool = False,
) -> Rule:
    """Bind a rule string to the shapes of one call.

    Args:
        operands: shapes of the tensor operands that the call has.
        results: shapes of its tensor results.
        present: for every operand in the string, whether the call has it.

    Raises:
        NotationError: the shapes do not fit the string.
    """
    template = parse(text)
    given = list(present) if present is not None else [True] * len(template.operands)
    chosen = [t for t, is_given in zip(template.operands, given, strict=True) if is_given]
    if len(chosen) != len(operands) or len(template.results) != len(results):
        raise NotationError(
            f"{text!r} takes {len(chosen)} tensors and gives {len(template.results)}; "
            f"the call has {len(operands)} and {len(results)}"
        )
    binder = _Binder(text)
    for tensor in (*chosen, *template.results):
        binder.declare(tensor)
    bound = [binder.tensor(t, shape) for t, shape in zip(chosen, operands, strict=True)]
    outs = [binder.tensor(t, s) for t, s in zip(template.results, results, strict=True)]
    used = {f for dims in (*bound, *outs) for dim in dims for block in dim for f in block}
    return Rule(
        operands=tuple(Operand(d, t.added) for d, t in zip(bound, chosen, strict=True)),
        results=tuple(outs),
        sizes=tuple((name, size) for name, size in binder.sizes.items() if name in used),
        whole=_spread(template.whole, binder.many),
        lowered=_spread(template.lowered, binder.many),
        linear=tuple(linear),
        reduce=reduce,
        passes=passes,
        random=random,
        detached=detached,
        linked=(*_linked((*bound, *outs)), *_tied_together(template.tied)),
        tied=template.tied,
    )


def _spread(names: frozenset[str], many: dict[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(one for name in names for one in many.get(name, (name,)))


def _tied_together(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Factors that are tied to one another, be it through others."""
    groups: list[tuple[str, ...]] = []
    for pair in pairs:
        met = [group for group in groups if not set(group).isdisjoint(pair)]
        joined = tuple(dict.fromkeys(name for group in (*met, pair) for name in group))
        groups = [*(group for group in groups if group not in met), joined]
    return tuple(groups)


def _linked(tensors: Sequence[tuple[DimSpec, ...]]) -> tuple[tuple[str, ...], ...]:
    """Factors that stand side by side in one dim and so must be split over the same axes."""
    return tuple(
        tuple(name for block in dim for name in block)
        for dims in tensors
        for dim in dims
        if len(dim) > 1
    )
