"""check_step: what holds of a step program after each of its passes.

A check yields one sentence for every place where its invariant does not hold. Each reads the graph
once from front to back, so that together they cost less than any pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import fx

from shardlang.ir.node import info
from shardlang.ir.step import (
    StepProgram,
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
)
from shardlang.passes.invariants.invariant import InvariantError
from shardlang.passes.step.narrow_sums import narrow_sums

Check = Callable[[StepProgram], Iterator[str]]


def check_step(program: StepProgram, after: str) -> None:
    """Check all invariants of a step program.

    Raises:
        InvariantError: the first that does not hold, with the pass that ran last.
    """
    for check in CHECKS:
        for problem in check(program):
            raise InvariantError(f"after {after}, {check.__name__}: {problem}")


def names_unique(program: StepProgram) -> Iterator[str]:
    """No two nodes have one name, by which the two halves hand values over."""
    seen: set[str] = set()
    for node in program.graph.nodes:
        if node.name in seen:
            yield f"two nodes are called `{node.name}`"
        seen.add(node.name)


def values_there(program: StepProgram) -> Iterator[str]:
    """Every value is made before it is read."""
    made: set[fx.Node] = set()
    for node in program.graph.nodes:
        for source in node.all_input_nodes:
            if source not in made:
                yield f"`{node}` reads `{source}`, which is not there yet"
        made.add(node)


def forward_alone(program: StepProgram) -> Iterator[str]:
    """Nothing of the forward reads what the backward makes."""
    for node in program.graph.nodes:
        if node.op == "output" or info(node).backward:
            continue
        for source in node.all_input_nodes:
            if info(source).backward:
                yield f"`{node}` of the forward reads `{source}` of the backward"


def draws_once(program: StepProgram) -> Iterator[str]:
    """The backward draws nothing: it reads what the forward has drawn."""
    for node in program.graph.nodes:
        if node.op == "call_function" and info(node).backward and info(node).random:
            yield f"`{node}` of the backward draws"


def ends_match(program: StepProgram) -> Iterator[str]:
    """The graph takes and returns what the program says, the results from the forward."""
    results, gradients = program.returned
    taken = len(program.graph.find_nodes(op="placeholder"))
    counts = (
        ("placeholders", taken, len(program.leaves) + len(program.cotangents)),
        ("results", len(results), len(program.results)),
        ("gradients", len(gradients), len(program.gradients)),
    )
    for what, found, wanted in counts:
        if found != wanted:
            yield f"{found} {what}, and the program says {wanted}"
    for node in results:
        if info(node).backward:
            yield f"the result `{node}` is of the backward"


def buckets_match(program: StepProgram) -> Iterator[str]:
    """What is sent as one call is of one kind over one group, a collective for each value."""
    for node in program.graph.nodes:
        if not is_collective(node) or not is_bucket(node):
            continue
        values, collectives = node.args[:2]
        assert isinstance(values, Sequence) and isinstance(collectives, Sequence)
        if len(values) != len(collectives) or not values:
            yield f"`{node}` has {len(values)} values and {len(collectives)} collectives"
            continue
        kinds = {(c.kind, c.axes, c.reduce) for _, c in collectives_of(node)}
        if len(kinds) > 1:
            yield f"`{node}` makes collectives of different kinds or groups"


def starts_waited(program: StepProgram) -> Iterator[str]:
    """A start is read by one wait, which stands in its half and reads nothing else."""
    for node in program.graph.nodes:
        if is_wait(node) and not all(is_start(x) for x in node.all_input_nodes):
            yield f"`{node}` waits for what is no start"
        if not is_start(node):
            continue
        readers = list(node.users)
        if len(readers) != 1 or not is_wait(readers[0]):
            yield f"`{node}` is read by {', '.join(f'`{x}`' for x in readers) or 'nothing'}"
        elif info(readers[0]).backward != info(node).backward:
            yield f"`{node}` is waited for in the other half"


def sums_wide(program: StepProgram) -> Iterator[str]:
    """Gradients are reduced in no narrower type than the spec states."""
    types = {leaf.name: leaf.computes or leaf.dtype for leaf in program.leaves}
    pairs = zip(program.gradients, program.returned[1], strict=True)
    ends = [(node, types[name]) for name, node in pairs if name in types]
    for node in narrow_sums(ends, program.wide):
        yield f"`{node}` is made in a narrower type than {program.wide}"


CHECKS: tuple[Check, ...] = (
    names_unique,
    values_there,
    forward_alone,
    draws_once,
    ends_match,
    buckets_match,
    starts_waited,
    sums_wide,
)
"""The invariants, each by the name of its check."""
