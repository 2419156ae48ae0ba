"""Whether the text of every spec's graph is read back as the same graph, after every pass.

    python -m tests.graph_text [--only examples|families|zoo] [--after PASS] [--named WORD]

Of a large graph the text is read back after three passes, which change from spec to spec. Prints
what differs, and ends with 1 if something does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator

from shardlang.ir.difference import difference
from shardlang.ir.graph import ShardGraph
from shardlang.ir.program import LocalProgram
from shardlang.ir.text import graph_text
from shardlang.passes.graph_text import read_graph
from shardlang.passes.pipeline import PIPELINE
from shardlang.passes.rewrite.localize import to_program
from tests.all_specs import KINDS, REFUSED, Build, all_specs

STATES = ("normalize", *(one.name for one in PIPELINE))
"""The passes after which there is a graph to print."""
LARGE, FEW = 150, 3
"""From so many nodes on, so many states of a graph are read back."""


def states(build: Build) -> Iterator[tuple[str, ShardGraph]]:
    """The graph of a spec after every pass; one graph, changed between them."""
    graph, _ = build()
    yield STATES[0], graph
    for one in PIPELINE:
        graph = one.run(graph)
        yield one.name, graph


def unlike(after: str, graph: ShardGraph, long: bool) -> str | None:
    """What the text of a graph does not say, or says otherwise when it is printed again."""
    local = after == STATES[-1]
    text = graph_text(graph, local=local, long=long)
    made = read_graph(text)
    found = difference(graph, made, local=local, long=long)
    if found is None and graph_text(made, local=local, long=long) != text:
        found = "it is printed in another way"
    if found is None and local:
        program = to_program(graph)
        if not same_program(to_program(read_graph(program.text())), program):
            found = "it is another program"
    return found


def same_program(made: LocalProgram, program: LocalProgram) -> bool:
    """Whether two programs have the same leaves, results and fingerprint."""
    return (
        made.leaves == program.leaves
        and made.results == program.results
        and made.fingerprint() == program.fingerprint()
    )


def chosen(number: int, graph: ShardGraph) -> Collection[str]:
    """The states of a spec that are read back: all, or few of a large graph."""
    if len(graph.graph.nodes) < LARGE:
        return STATES
    return {STATES[(number + i * len(STATES) // FEW) % len(STATES)] for i in range(FEW)}


def check(name: str, build: Build, number: int, after: str | None) -> Iterator[str]:
    """The findings of one spec, a line each."""
    wanted: Collection[str] = (after,) if after else ()
    try:
        for place, (state, graph) in enumerate(states(build)):
            wanted = wanted or chosen(number, graph)
            if state in wanted:
                yield from finding(name, state, graph, long=(place + number) % 2 == 0)
    except REFUSED:
        return


def finding(name: str, state: str, graph: ShardGraph, long: bool) -> Iterator[str]:
    """What is wrong with one graph's text, on one line."""
    try:
        found = unlike(state, graph, long)
    except Exception as fault:
        found = f"{type(fault).__name__}: {fault}"
    if found is not None:
        yield f"{name}, after {state}{' (long)' if long else ''}: {found}"


def main() -> int:
    """Go through the specs; 1 where a text is read back as another graph."""
    parser = argparse.ArgumentParser(prog="python -m tests.graph_text", description=__doc__)
    parser.add_argument("--only", choices=sorted(KINDS))
    parser.add_argument("--after", choices=STATES)
    parser.add_argument("--named", default="", help="specs whose name has this in it")
    options = parser.parse_args()
    count = bad = 0
    for number, (name, build) in enumerate(all_specs(options.only)):
        if options.named in name:
            count += 1
            for line in check(name, build, number, options.after):
                bad += 1
                print(line, flush=True)
    print(f"{count} specs, {bad} texts are read back as another graph")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
