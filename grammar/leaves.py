"""The nodes that statements are made of: names, literals, layouts; see `shardlang.grammar.tree`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from shardlang.grammar.diagnostics import NOWHERE, Span

Side = Literal["in", "out"]
SIDES: tuple[Side, ...] = ("in", "out")


@dataclass(frozen=True, slots=True)
class Trivia:
    """Comments around a node, as written from `#` on; an empty line in a tuple is a blank line.

    `before`: lines above the node; `after`: the comment after it on its last line;
    `head`: behind the `{` of a block; `foot`: lines above the `}` of a block.
    """

    before: tuple[str, ...] = ()
    after: str = ""
    head: str = ""
    foot: tuple[str, ...] = ()


NO_TRIVIA = Trivia()


@dataclass(frozen=True, slots=True)
class Node:
    """What every node has: its place, which is not part of its value."""

    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Item(Node):
    """A node that the formatter puts on lines of its own: a statement, or a line of a block."""

    trivia: Trivia = field(default=NO_TRIVIA, kw_only=True)


@dataclass(frozen=True, slots=True)
class Ident(Node):
    """A bare name."""

    text: str


@dataclass(frozen=True, slots=True)
class Text(Node):
    """A quoted string, without its quotes; backslashes are kept as written."""

    text: str


@dataclass(frozen=True, slots=True)
class Number(Node):
    """An integer or a finite float; `text` is how it was written, no part of its value."""

    value: int | float
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Size(Node):
    """A byte size such as `512MiB`."""

    count: int
    unit: str


Scalar: TypeAlias = "Ident | Text | Number | Size"


@dataclass(frozen=True, slots=True)
class ListValue(Node):
    """A list of scalars, legal as an argument."""

    items: tuple[Scalar, ...]


Value: TypeAlias = "Scalar | ListValue"
Ref: TypeAlias = "Ident | Text"


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """`name = value` or a positional `value`."""

    name: Ident | None
    value: Value


@dataclass(frozen=True, slots=True)
class Part(Node):
    """`tp:4`, `tp/4`, `tp/2:2`: a part of an axis.

    Attributes:
        after: the number of shards that the more major parts make; 1 if none is written.
        shards: the number that the part makes; None for all that are left.
    """

    name: Ident
    after: int = 1
    shards: int | None = None


@dataclass(frozen=True, slots=True)
class Product(Node):
    """`a*b`: axes, parts of axes or dims, major to minor."""

    names: tuple[Ident | Part, ...]


@dataclass(frozen=True, slots=True)
class AxesEntry(Node):
    """A layout entry that shards its dim; `blocks` is the list in `tp(3)` or `tp(64, 8, 8)`."""

    product: Product
    blocks: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class WholeEntry(Node):
    """`_`: the dim stays whole."""


@dataclass(frozen=True, slots=True)
class OpenEntry(Node):
    """`?`: propagation decides."""


@dataclass(frozen=True, slots=True)
class RestEntry(Node):
    """`...`: the remaining dims, all `?`."""


Entry: TypeAlias = "AxesEntry | WholeEntry | OpenEntry | RestEntry"


@dataclass(frozen=True, slots=True)
class Layout(Node):
    """`[entry, ...] +axis`."""

    entries: tuple[Entry, ...]
    partial: tuple[Ident | Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector(Node):
    """`.out`, `.out.1`, `.in.hidden_states`: which tensor of a module."""

    side: Side
    path: tuple[str, ...] = ()
