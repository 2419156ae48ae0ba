"""Proving one call: all its assignments, with a tally."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from shardlang.ir.compat import DataDependentOutputException, DynamicOutputShapeException
from shardlang.ir.graph import sharding_of
from shardlang.proof.rules.assignments import assignments
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.check import Case, check, modes_of
from shardlang.proof.rules.samples import Skipped
from shardlang.proof.rules.traits import wrong_traits
from shardlang.rules.notation import Refusal
from shardlang.rules.schema import Operator, full_name, short_name
from shardlang.rules.writing import rule_text

LARGE = 100_000
"""The number of elements above which a call is large."""

MOST_OF_LARGE = 4
"""How many splits, chosen at random, are tried of a large call."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One assignment under which the sharded program is wrong."""

    op: str
    call: str
    assignment: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.call} with {self.assignment}: {self.reason}"


@dataclass(slots=True)
class Proven:
    """What was proven of one overload.

    Attributes:
        refused: samples whose result has a shape that depends on data, and the like.
        rule: the rule of one call, one with many dims.
    """

    samples: int = 0
    assignments: int = 0
    failures: int = 0
    refused: int = 0
    rule: str = ""

    def add_rule(self, text: str) -> None:
        """Keep the longest rule."""
        self.rule = max(self.rule, text, key=len)

    def add(self, other: Proven) -> None:
        """Take in what else was proven."""
        self.samples += other.samples
        self.assignments += other.assignments
        self.failures += other.failures
        self.refused += other.refused
        self.add_rule(other.rule)


@dataclass(slots=True)
class Tally:
    """What was proven."""

    ops: set[str] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)
    calls: int = 0
    large: int = 0
    assignments: int = 0
    failures: list[Failure] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    proven: dict[str, Proven] = field(default_factory=dict)

    def fail(self, target: str, failure: Failure) -> Failure:
        """Count a failure."""
        self.failures.append(failure)
        self.proven[target].failures += 1
        return failure

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        self.ops |= other.ops
        self.targets |= other.targets
        self.calls += other.calls
        self.large += other.large
        self.assignments += other.assignments
        self.failures += other.failures
        self.skipped += other.skipped
        self.missing = {**other.missing, **self.missing}
        for name, proven in other.proven.items():
            self.proven.setdefault(name, Proven()).add(proven)

    def __str__(self) -> str:
        text = (
            f"{len(self.ops)} ops, {len(self.targets)} aten overloads, {self.calls} samples, "
            f"{self.assignments} assignments, {len(self.failures)} failures, "
            f"{sum(one.refused for one in self.proven.values())} samples refused"
        )
        text += (
            f"\nnot traced: {len(self.skipped)} samples of {len({s.op for s in self.skipped})} ops"
        )
        if self.large:
            text += f"\nlarge: {self.large} samples of more than {LARGE} elements, of which "
            text += f"{MOST_OF_LARGE} assignments each were tried"
        return text + f"\nwithout a rule: {', '.join(sorted(self.missing)) or 'none'}"


def prove_call(
    name: str, call: AtenCall, tally: Tally, chooser: random.Random, most: int | None = None
) -> Iterator[Failure]:
    """Check a call under all its assignments (or `most` random ones); yields the failures.

    Of a large call, `MOST_OF_LARGE` assignments are tried.
    """
    if sum(x.numel() for x in call.tensors) > LARGE:
        tally.large += 1
        most = min(most or MOST_OF_LARGE, MOST_OF_LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from _prove(name, call, tally, chooser, most)


def _prove(
    name: str, call: AtenCall, tally: Tally, chooser: random.Random, most: int | None
) -> Iterator[Failure]:
    tally.ops.add(name)
    target = full_name(call.target)
    tally.targets.add(target)
    tally.calls += 1
    proven = tally.proven.setdefault(target, Proven())
    proven.samples += 1
    try:
        case = Case(call)
        nodes = [(mode, case.node(mode)) for mode in modes_of(call.target)]
    except Exception as error:  # whatever a wrong rule raises is a finding
        if _is_refusal(error):
            proven.refused += 1
        else:
            yield tally.fail(target, Failure(name, str(call), "binding", _reason(error)))
        return
    rules = [(mode, sharding_of(node).rule) for mode, node in nodes]
    for _, rule in rules:
        proven.add_rule(rule_text(rule))
    for wrong_trait in wrong_traits(call, nodes[0][1]):
        yield tally.fail(target, Failure(name, str(call), "its traits", wrong_trait))
    ways = [(fast, way) for fast, rule in rules for way in (rule, *rule.others)]
    pairs = [(fast, a, a.sharding(way)) for fast, way in ways for a in assignments(way)]
    legal = [(fast, a, s) for fast, a, s in pairs if s is not None]
    if most is not None and len(legal) > most:
        legal = chooser.sample(legal, most)
    wrong = 0
    for fast, assignment, sharding in legal:
        if wrong == 3:
            return
        tally.assignments += 1
        proven.assignments += 1
        try:
            check(case, assignment, sharding, fast)
        except Exception as error:
            wrong += 1
            yield tally.fail(target, Failure(name, str(call), str(assignment), _reason(error)))


def _is_refusal(error: Exception) -> bool:
    """Whether a call cannot be traced or split by its nature."""
    by_data = (DynamicOutputShapeException, DataDependentOutputException)
    return isinstance(error, by_data) or isinstance(error.__cause__, Refusal)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")


def failures_of(target: Operator, *args: object, **kwargs: object) -> list[Failure]:
    """What is wrong with the rule of one call: an empty list where every split of it is right."""
    call = AtenCall(target, args, kwargs)
    return list(prove_call(short_name(call.target), call, Tally(), random.Random(0)))
