"""Random specs: trees of every shape, and mutations of their text.

All draws come from one `random.Random`, so hypothesis can shrink them and a seed repeats them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shardlang.grammar import tree as t
from shardlang.grammar.scan import STATEMENTS

_T = TypeVar("_T")

AXES = ("dp", "tp", "data", "model", "ep")
DIMS = ("batch", "heads", "mlp", "param", "x")
LETS = ("b", "seq", "width", "expect", "in")
WORDS = (
    *AXES,
    *DIMS,
    *LETS,
    *STATEMENTS,
    "out",
    "bytes",
    "forward",
    "_private",
    "auto",
    "hf",
)
PATTERNS = (
    "**", "*", "**.weight", "layers.*", "layers.{0..1}.up.weight", "layers.*.{up,down}.weight",
    "layers.0", "norm.bias", "layers.*.mlp", "**.{bias,scale}", "head.weight", "logits", "loss",
    "layers.{0,1}.down.weight", "layers.1.mlp", "tied.weight", "norm.*", "ids", "mask",
)  # fmt: skip
ODD_PATTERNS = (
    "missing.weight", "a\\{b", "{a", "}", "{3..1}", "\\", "", "{a,{b,c}}*", "**.**.**", "🦆.*",
)  # fmt: skip
OPS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "full_gather",
    "transfer", "any",
)  # fmt: skip
DTYPES = ("i64", "f32", "bf16", "bool", "i32")


class SpecMaker:
    """Makes trees; `wild` is the chance that a name or number is drawn without regard to sense."""

    def __init__(self, rng: random.Random, wild: float = 0.05) -> None:
        self.rng = rng
        self.wild = wild

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def many(self, make: Callable[[], _T], least: int, most: int) -> tuple[_T, ...]:
        return tuple(make() for _ in range(self.rng.randint(least, most)))

    def ident(self, usual: Sequence[str]) -> t.Ident:
        return t.Ident(self.rng.choice(WORDS if self.chance(self.wild) else usual))

    def pattern(self) -> t.Text:
        return t.Text(self.rng.choice(ODD_PATTERNS if self.chance(self.wild) else PATTERNS))

    def number(self) -> t.Number:
        if self.chance(self.wild):
            return t.Number(self.rng.choice([0, -1, 2**63 - 1, -(2**63) + 1, 10**18]))
        return t.Number(self.rng.choice([1, 2, 2, 3, 4, 8, 16]))

    def size(self) -> t.Scalar:
        return self.ident(LETS[:3]) if self.chance(0.15) else self.number()

    def scalar(self) -> t.Scalar:
        kind = self.rng.randrange(6)
        if kind == 0:
            return self.ident((*LETS[:3], "true", "false"))
        if kind == 1:
            return t.Text(self.rng.choice(["train", "eval", "causal-lm", "x.json", ""]))
        if kind == 2:
            return t.Number(self.rng.choice([0.1, -2.5e-7, 1e22, 3.0, -0.0, 1e-300]))
        if kind == 3:
            return t.Size(self.rng.randrange(1000), self.rng.choice(["KiB", "MiB", "GiB", "TiB"]))
        return self.number()

    def value(self) -> t.Value:
        return t.ListValue(self.many(self.scalar, 0, 3)) if self.chance(0.15) else self.scalar()

    def argument(self) -> t.Argument:
        usual = ("width", "task", "depth", "lr", "betas", "clip")
        name = None if self.chance(self.wild) else self.ident(usual)
        return t.Argument(name, self.value())

    def product(self) -> t.Product:
        names = [*AXES[:2], *DIMS[:2]]
        if self.chance(0.05):
            return t.Product((self.part(),))
        if self.chance(0.8):
            return t.Product((self.ident(names),))
        return t.Product(self.many(lambda: self.ident(names), 1, 2))

    def part(self) -> t.Part:
        """A part of an axis, which may not be there."""
        after = self.rng.choice([1, 1, 2])
        shards = 2 if after == 1 or self.chance(0.3) else None
        return t.Part(self.ident(AXES[:2]), after, shards)

    def entry(self) -> t.Entry:
        kind = self.rng.randrange(8)
        if kind == 0:
            return t.OpenEntry()
        if kind == 1 and self.chance(0.5):
            return t.RestEntry()
        if kind < 6:
            return t.WholeEntry()
        blocks = self.many(self.size, 1, 3) if self.chance(0.15) else ()
        return t.AxesEntry(self.product(), blocks)

    def layout(self, least: int = 0) -> t.Layout:
        if self.chance(0.3):
            return t.Layout((self.entry(), t.RestEntry()))
        entries = self.many(self.entry, least, 3)
        partial = self.many(lambda: self.ident(AXES), 1, 2) if self.chance(self.wild) else ()
        return t.Layout(entries, partial)

    def ref(self) -> t.Ref:
        if self.chance(0.7):
            return self.ident(("ids", "labels", "mask", "loss", "logits"))
        return self.pattern()

    def axis(self) -> t.AxisDecl:
        link = self.ident(("nvlink", "ib")) if self.chance(0.2) else None
        role = self.rng.choice(t.AXIS_ROLES) if self.chance(0.1) else None
        return t.AxisDecl(self.ident(AXES), self.size(), link, role)

    def mesh(self) -> t.Mesh:
        names = self.rng.sample(AXES, self.rng.randint(1, 3))
        names = list(dict.fromkeys([*AXES[:2], *names])) if self.chance(0.9) else names
        items = [t.AxisDecl(t.Ident(name), t.Number(self.rng.randint(1, 4))) for name in names]
        return t.Mesh(tuple(items) + (self.many(self.axis, 0, 2) if self.chance(self.wild) else ()))

    def dims_entry(self) -> t.DimsEntry:
        product = (
            None if self.chance(0.1) else t.Product(self.many(lambda: self.ident(AXES[:2]), 1, 2))
        )
        return t.DimsEntry(self.many(lambda: self.ident(DIMS), 1, 3), product)

    def dims(self) -> t.Dims:
        return t.Dims(self.many(self.dims_entry, 0, 3))

    def let(self) -> t.Let:
        return t.Let(self.ident(LETS), self.scalar())

    def model(self) -> t.Model:
        if self.chance(0.7):
            source: t.Ref = t.Text("a:b" if self.chance(self.wild) else "m.py:build")
            return t.Model(source, self.many(self.argument, 0, 2))
        first = t.Argument(None, t.Text("c.json"))
        return t.Model(self.ident(["hf"]), (first, *self.many(self.argument, 0, 2)))

    def input(self) -> t.Input:
        shape = self.many(self.size, 0, 3)
        entries = tuple(self.entry() for _ in shape)
        layout = self.layout() if self.chance(self.wild) else t.Layout(entries)
        dtype = self.ident(DTYPES)
        below = self.size() if self.chance(0.2) else None
        return t.Input(self.many(self.ref, 1, 2), dtype, shape, below, layout)

    def store(self) -> t.Store:
        return t.Store(self.pattern(), self.product(), self.chance(0.2))

    def value_statement(self) -> t.ValueStatement:
        side: Any = self.rng.choice(["in", "out"])
        path = self.many(lambda: self.rng.choice(["0", "1", "logits", "in", "5x"]), 0, 2)
        selector = t.Selector(side, path) if self.chance(0.5) else None
        return t.ValueStatement(self.pattern(), selector, self.layout())

    def select(self) -> t.Select:
        phase = self.rng.choice([None, "forward", "backward", "update"])
        axes = self.product() if self.chance(0.5) else None
        return t.Select(
            phase, self.rng.choice(OPS), axes, self.pattern() if self.chance(0.4) else None
        )

    def local_size(self) -> t.Scalar | t.OpenEntry:
        return t.OpenEntry() if self.chance(0.3) else self.size()

    def expect_item(self) -> t.ExpectItem:
        kind = self.rng.randrange(5)
        if kind == 0:
            return t.Forbid(self.select())
        if kind == 1:
            return t.LayoutIs(self.pattern(), self.layout())
        if kind == 2:
            return t.LocalIs(self.pattern(), self.many(self.local_size, 0, 3))
        comparison = self.rng.choice(["==", "<=", "<", ">=", ">"])
        if kind == 3:
            return t.LocalBytes(self.pattern(), comparison, self.scalar())
        measure: Any = self.rng.choice(["count", "bytes"])
        limit = self.times_bound() if self.chance(0.3) else self.scalar()
        return t.Count(measure, self.select(), comparison, limit)

    def times_bound(self) -> t.TimesBound:
        return t.TimesBound(self.scalar() if self.chance(0.7) else None)

    def checkpoint(self) -> t.Checkpoint:
        counts = [self.scalar() if self.chance(0.5) else None for _ in range(2)]
        return t.Checkpoint(self.scalar(), *counts, self.rng.choice([None, *t.ON_NAN]))

    def statement(self) -> t.Statement:
        """Any statement but `use`, which would read files."""
        makers: list[Callable[[], t.Statement]] = [
            self.input,
            self.store,
            self.value_statement,
            self.let,
            lambda: t.Output(self.many(self.ref, 1, 2), self.layout()),
            lambda: t.Loss(self.ref()),
            lambda: t.Param(self.pattern(), self.layout()),
            lambda: t.Param(self.pattern(), self.layout(1)),
            lambda: t.Buffer(self.pattern(), self.layout()),
            lambda: t.Expect(self.many(self.expect_item, 0, 3)),
        ]
        rare: list[Callable[[], t.Statement]] = [
            self.mesh,
            self.dims,
            self.model,
            lambda: t.Optimizer(self.ident(["adamw", "sgd"]), self.many(self.argument, 0, 3)),
            self.checkpoint,
            self.pipeline,
            lambda: t.Group(self.many(self.pattern, 1, 2), self.many(self.argument, 0, 2)),
            lambda: t.LearningRate(self.many(self.phase, 1, 2)),
            lambda: t.Evaluate(
                t.Number(500), t.Number(20), self.rng.choice([self.pattern(), None])
            ),
            lambda: t.Cluster(self.many(self.peak, 0, 2)),
            lambda: t.Random(self.rng.choice(["exact", "fast"])),
            lambda: t.Recompute(tuple(self.pattern() for _ in range(self.rng.randint(0, 2)))),
            lambda: t.Recompute(budget=t.Size(self.rng.randint(1, 9), "GiB")),
        ]
        return self.rng.choice(rare if self.chance(0.1) else makers)()

    def peak(self) -> t.Peak:
        return t.Peak(self.ident(("bf16", "f32", "i8")), self.scalar())

    def stage(self) -> t.Stage:
        return t.Stage(self.many(self.pattern, 1, 3))

    def pipeline(self) -> t.Pipeline:
        names = ["gpipe", "1f1b", "zbv", "interleaved_1f1b", "1F1B", "mine"]
        makers: list[Callable[[], t.PipelineItem]] = [
            lambda: t.Split(self.many(self.pattern, 1, 2)),
            lambda: t.SplitAuto(),
            lambda: t.Stages(self.many(self.stage, 0, 3)),
            lambda: t.Order(t.Ident(self.rng.choice(names)), self.many(self.argument, 0, 1)),
            lambda: t.Order(t.Text(self.rng.choice(["a.csv", "", "b.txt"]))),
            lambda: t.Microbatches(self.size()),
        ]
        items = tuple(make() for make in makers if self.chance(0.6))
        return t.Pipeline(self.ident(AXES), (*items, *self.many(self.rng.choice(makers), 0, 1)))

    def phase(self) -> t.Phase:
        name = self.rng.choice(["warmup", "cosine", "linear", "steplr"])
        return t.Phase(t.Ident(name), self.many(self.argument, 0, 2))

    def sensible(self) -> t.Tree:
        """A tree that declares what it uses, more often than not."""
        lets = [t.Let(t.Ident(name), t.Number(self.rng.choice([2, 4, 8]))) for name in LETS[:3]]
        dims = [t.DimsEntry((t.Ident("batch"),), t.Product((t.Ident("dp"),)))]
        dims += [t.DimsEntry((t.Ident("heads"),), t.Product((t.Ident("tp"),)))]
        head: list[t.Statement] = [*lets, self.mesh(), t.Dims(tuple(dims)), self.model()]
        return t.Tree((*head, *self.many(self.statement, 0, 5)))

    def anything(self) -> t.Tree:
        """Any tree at all, with comments and blank lines."""
        made = self.many(
            lambda: t.Use(self.pattern()) if self.chance(0.1) else self.statement(), 0, 6
        )
        statements = self._with_trivia(made)
        return t.Tree(statements, self._foot(bool(statements)))

    def _with_trivia(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._commented(item, index == 0) for index, item in enumerate(items))

    def _commented(self, item: Any, first: bool) -> Any:
        from dataclasses import replace

        before = self._lines(first)
        after = self._comment() if self.chance(0.2) else ""
        if not isinstance(item, t.Mesh | t.Dims | t.Pipeline | t.Stages | t.Cluster | t.Expect):
            return replace(item, trivia=t.Trivia(before, after))
        head = self._comment() if self.chance(0.2) else ""
        items = self._with_trivia(item.items)
        trivia = t.Trivia(before, after, head, self._foot(bool(items)))
        return replace(item, items=items, trivia=trivia)

    def _comment(self) -> str:
        text = self.rng.choice([" why", "", "!", ' "quoted" { [', "# twice", " ünï ☃", "\tx"])
        return "#" + text

    def _lines(self, first: bool) -> tuple[str, ...]:
        """Comments and single blank lines; a blank line never comes first in its block."""
        lines: list[str] = []
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            blank = self.chance(0.4) and bool(lines or not first) and lines[-1:] != [""]
            lines.append("" if blank else self._comment())
        return tuple(lines)

    def _foot(self, follows: bool) -> tuple[str, ...]:
        lines = list(self._lines(not follows))
        while lines and not lines[-1]:
            lines.pop()
        return tuple(lines)


_SNIPPETS = (
    "{", "}", "[", "]", "(", ")", '"', "#", ",", ":", "=", "+", "*", "...", "_", "?", "..",
    ".out.1", "over", "as data", "below", "\n", "\r\n", "\t", "\0", "\ud800", "\u2028", "é", "🦆",
    "9" * 5000,
    "1e999", "2tp", "512Mib", "-", "expect {", "local bytes", "mesh {", "precision bf16",
    'use "x"', "let x = x",
    'param "', "\\", "regather", "<=", "true", "let a = b let b = a",
)  # fmt: skip


def mutate(text: str, rng: random.Random) -> str:
    """A text with a few random changes."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        until = min(len(text), at + rng.choice([0, 1, 1, 3, 20]))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + text[until:]
        elif kind == 1:
            text = text[:at] + rng.choice(_SNIPPETS) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at:until] * 2 + text[until:]
        elif kind == 3:
            text = (
                text[:at]
                + chr(rng.choice([rng.randrange(128), rng.randrange(0x11000)]))
                + text[until:]
            )
        else:
            other = rng.randint(0, len(text))
            text = text[:at] + text[other : other + 15] + text[at:]
    return text
