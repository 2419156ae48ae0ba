"""Lark's parse tree to the frozen nodes of `shardlang.grammar.tree`: one function per rule."""

from __future__ import annotations

from collections.abc import Callable

from shardlang.grammar import build_leaves as leaf
from shardlang.grammar import tree as t
from shardlang.grammar.build_pipeline import pipeline
from shardlang.grammar.rule import Parsed, Rule, chosen
from shardlang.grammar.scan import Source, Token
from shardlang.grammar.trivia import attach


def build_tree(parsed: Parsed, source: Source, tokens: list[Token]) -> t.Tree:
    """The syntax tree of a parsed file, comments included."""
    file = Rule(parsed, source.file)
    statements = tuple(leaf.either(rule, _STATEMENTS) for rule in file.rules())
    return attach(t.Tree(statements, file=source.file), source, tokens)


def _use(rule: Rule) -> t.Use:
    return t.Use(leaf.text(rule, 0), span=rule.span)


def _let(rule: Rule) -> t.Let:
    return t.Let(leaf.ident(rule, 0), leaf.scalar(rule.rule(1)), span=rule.span)


def _mesh(rule: Rule) -> t.Mesh:
    return t.Mesh(tuple(map(_axis, rule.rules())), span=rule.span)


def _axis(rule: Rule) -> t.AxisDecl:
    role = rule.maybe_token(3)
    return t.AxisDecl(
        leaf.ident(rule, 0),
        leaf.scalar(rule.rule(1)),
        leaf.maybe_ident(rule, 2),
        None if role is None else chosen(role, t.AXIS_ROLES),
        span=rule.span,
    )


def _dims(rule: Rule) -> t.Dims:
    return t.Dims(tuple(map(_dims_entry, rule.rules())), span=rule.span)


def _dims_entry(rule: Rule) -> t.DimsEntry:
    names, *sizes = rule.rules()
    return t.DimsEntry(leaf.names(names), leaf.product(sizes[0]) if sizes else None, span=rule.span)


def _model(rule: Rule) -> t.Model:
    return t.Model(leaf.ref(rule.rule(0)), leaf.arguments(rule.maybe_rule(1)), span=rule.span)


def _input(rule: Rule) -> t.Input:
    below = rule.maybe_rule(3)
    return t.Input(
        leaf.refs(rule.rule(0)),
        leaf.ident(rule, 1),
        leaf.scalars(rule.rule(2)),
        None if below is None else leaf.scalar(below.rule(0)),
        leaf.layout(rule.rule(4)),
        span=rule.span,
    )


def _output(rule: Rule) -> t.Output:
    return t.Output(leaf.refs(rule.rule(0)), leaf.layout(rule.rule(1)), span=rule.span)


def _loss(rule: Rule) -> t.Loss:
    return t.Loss(leaf.ref(rule.rule(0)), span=rule.span)


def _param(rule: Rule) -> t.Param:
    return t.Param(leaf.text(rule, 0), leaf.layout(rule.rule(1)), span=rule.span)


def _buffer(rule: Rule) -> t.Buffer:
    return t.Buffer(leaf.text(rule, 0), leaf.layout(rule.rule(1)), span=rule.span)


def _store(rule: Rule) -> t.Store:
    pattern, axes = leaf.text(rule, 1), leaf.product(rule.rule(2))
    return t.Store(pattern, axes, rule.has(3), str(rule.maybe_token(0) or ""), span=rule.span)


def _value(rule: Rule) -> t.ValueStatement:
    selector = rule.maybe_rule(1)
    return t.ValueStatement(
        leaf.text(rule, 0),
        None if selector is None else leaf.selector(selector),
        leaf.layout(rule.rule(2)),
        span=rule.span,
    )


def _data(rule: Rule) -> t.Data:
    cut = rule.maybe_token(1)
    return t.Data(
        leaf.text(rule, 0),
        None if cut is None else chosen(cut, t.CUTS),
        leaf.arguments(rule.maybe_rule(2)),
        span=rule.span,
    )


def _optimizer(rule: Rule) -> t.Optimizer:
    name = leaf.ident(rule, 0)
    return t.Optimizer(name, leaf.arguments(rule.maybe_rule(1)), span=rule.span)


def _group(rule: Rule) -> t.Group:
    patterns = leaf.texts(rule.rule(0))
    return t.Group(patterns, leaf.arguments(rule.rule(1)), span=rule.span)


def _learning_rate(rule: Rule) -> t.LearningRate:
    return t.LearningRate(tuple(map(_phase, rule.rules())), span=rule.span)


def _phase(rule: Rule) -> t.Phase:
    name = leaf.ident(rule, 0)
    return t.Phase(name, leaf.arguments(rule.maybe_rule(1)), span=rule.span)


def _evaluate(rule: Rule) -> t.Evaluate:
    every, batches = (leaf.scalar(rule.rule(i)) for i in range(2))
    return t.Evaluate(every, batches, leaf.maybe_text(rule, 2), span=rule.span)


def _random(rule: Rule) -> t.Random:
    return t.Random(chosen(rule.token(0), t.RANDOM_MODES), span=rule.span)


def _recompute(rule: Rule) -> t.Recompute:
    what = rule.rule(0)
    return t.Recompute(
        leaf.texts(what.rule(0)) if what.name == "modules" else (),
        leaf.scalar(what.rule(0)) if what.name == "budget" else None,
        span=rule.span,
    )


def _accumulate(rule: Rule) -> t.Accumulate:
    return t.Accumulate(leaf.scalar(rule.rule(0)), span=rule.span)


def _checkpoint(rule: Rule) -> t.Checkpoint:
    keep, keep_every, on_nan = (rule.maybe_rule(i) for i in (1, 2, 3))
    return t.Checkpoint(
        leaf.scalar(rule.rule(0)),
        leaf.scalar(keep.rule(0)) if keep else None,
        leaf.scalar(keep_every.rule(0)) if keep_every else None,
        chosen(on_nan.token(0), t.ON_NAN) if on_nan else None,
        span=rule.span,
    )


def _precision(rule: Rule) -> t.Precision:
    items = tuple(leaf.either(item, _PRECISION_ITEMS) for item in rule.rules())
    return t.Precision(items, span=rule.span)


def _typed(rule: Rule) -> t.Typed:
    return t.Typed(chosen(rule.token(0), t.TYPED), leaf.ident(rule, 1), span=rule.span)


def _loss_scale(rule: Rule) -> t.LossScale:
    return t.LossScale(leaf.scalar(rule.rule(0)), span=rule.span)


def _schedule(rule: Rule) -> t.Schedule:
    return t.Schedule(tuple(map(_prefetch, rule.rules())), span=rule.span)


def _prefetch(rule: Rule) -> t.Prefetch:
    return t.Prefetch(leaf.scalar(rule.rule(0)), span=rule.span)


def _cluster(rule: Rule) -> t.Cluster:
    return t.Cluster(tuple(map(_peak, rule.rules())), span=rule.span)


def _peak(rule: Rule) -> t.Peak:
    return t.Peak(leaf.ident(rule, 0), leaf.scalar(rule.rule(1)), span=rule.span)


def _expect(rule: Rule) -> t.Expect:
    items = tuple(leaf.either(item, _EXPECT_ITEMS) for item in rule.rules())
    return t.Expect(items, span=rule.span)


def _forbid(rule: Rule) -> t.Forbid:
    return t.Forbid(_select(rule.rule(0)), span=rule.span)


def _count(rule: Rule) -> t.Count:
    return t.Count(
        "bytes" if rule.has(0) else "count",
        _select(rule.rule(1)),
        str(rule.token(2)),
        _limit(rule.rule(3)),
        span=rule.span,
    )


def _limit(rule: Rule) -> t.Scalar | t.TimesBound:
    if rule.name != "times_bound":
        return leaf.scalar(rule)
    factor = rule.maybe_rule(0)
    return t.TimesBound(None if factor is None else leaf.scalar(factor), span=rule.span)


def _layout_is(rule: Rule) -> t.LayoutIs:
    return t.LayoutIs(leaf.text(rule, 0), leaf.layout(rule.rule(1)), span=rule.span)


def _local_is(rule: Rule) -> t.LocalIs:
    sizes = tuple(leaf.open_entry(r) if r.name == "open" else leaf.scalar(r) for r in rule.rules(1))
    return t.LocalIs(leaf.text(rule, 0), sizes, span=rule.span)


def _local_bytes(rule: Rule) -> t.LocalBytes:
    name, comparison = leaf.text(rule, 1), str(rule.token(2))
    return t.LocalBytes(name, comparison, leaf.scalar(rule.rule(3)), span=rule.span)


def _select(rule: Rule) -> t.Select:
    phase, axes = rule.maybe_token(0), rule.maybe_rule(2)
    return t.Select(
        None if phase is None else str(phase),
        str(rule.token(1)),
        None if axes is None else leaf.product(axes),
        leaf.maybe_text(rule, 3),
        span=rule.span,
    )


_EXPECT_ITEMS: dict[str, Callable[[Rule], t.ExpectItem]] = {
    "forbid": _forbid,
    "count": _count,
    "layout_is": _layout_is,
    "local_is": _local_is,
    "local_bytes": _local_bytes,
}
_PRECISION_ITEMS: dict[str, Callable[[Rule], t.PrecisionItem]] = {
    "typed": _typed,
    "loss_scale": _loss_scale,
}
_STATEMENTS: dict[str, Callable[[Rule], t.Statement]] = {
    "use": _use,
    "let": _let,
    "mesh": _mesh,
    "dims": _dims,
    "model": _model,
    "input": _input,
    "output": _output,
    "loss": _loss,
    "param": _param,
    "buffer": _buffer,
    "store": _store,
    "value": _value,
    "data": _data,
    "optimizer": _optimizer,
    "group": _group,
    "learning_rate": _learning_rate,
    "random": _random,
    "recompute": _recompute,
    "accumulate": _accumulate,
    "pipeline": pipeline,
    "checkpoint": _checkpoint,
    "precision": _precision,
    "evaluate": _evaluate,
    "schedule": _schedule,
    "cluster": _cluster,
    "expect": _expect,
}
