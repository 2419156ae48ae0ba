"""The bytes and calls of every example, family and zoo spec, compared with recorded ones.

    python -m tests.bytes_sent --against FILE [--only examples|families|zoo]
    python -m tests.bytes_sent --write FILE

A specification's figures are those of its plan: calls, and bytes that the busiest device sends, by
phase and collective. `--against` prints where they differ and ends with 1 where more is sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from shardlang.compiler.whole_buffers import check_updates
from shardlang.ir.optimizers import ASSUMED, UpdateRule
from shardlang.passes.pipeline import run_passes
from shardlang.passes.rewrite.localize import to_program
from shardlang.plan import make_plan
from shardlang.plan.totals import totals_of
from shardlang.plan.types import Plan
from tests.all_specs import KINDS, REFUSED, Build, all_specs

Figures = dict[str, tuple[int, int]]
"""`forward all_reduce` to (calls, bytes); empty where the spec is refused."""


def figures_of(plan: Plan) -> Figures:
    """What a plan sends by changes of layout, without the collectives that it does not have."""
    totals = totals_of(row for row in plan.collectives if row.node)
    return {
        f"{phase} {op}": (total.count, total.bytes)
        for phase, ops in totals.items()
        for op, total in ops.items()
        if total.count
    }


def figures(build: Build) -> Figures:
    """What a spec sends; nothing where it is refused."""
    try:
        graph, spec = build()
        graph = run_passes(graph)
        check_updates(graph)
    except REFUSED:
        return {}
    stated = spec.optimizer
    rule = ASSUMED if stated is None else UpdateRule(stated.name, stated.kwargs)
    return figures_of(make_plan(to_program(graph), rule=rule))


def total(figures: Figures) -> int:
    """All bytes of a spec."""
    return sum(size for _, size in figures.values())


def more_is_sent(name: str, before: Figures, after: Figures) -> bool:
    """Print a spec whose figures differ; whether it sends more, or is refused now."""
    if before == after:
        return False
    worse = total(after) > total(before) or (bool(before) and not after)
    print(f"{'MORE' if worse else 'less'} {name}: {total(before)} -> {total(after)} bytes")
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            print(f"     {key}: {before.get(key, (0, 0))} -> {after.get(key, (0, 0))}")
    return worse


def main() -> int:
    """Write or compare the figures; 1 where a spec sends more than is recorded."""
    parser = argparse.ArgumentParser(prog="python -m tests.bytes_sent", description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", choices=sorted(KINDS))
    options = parser.parse_args()
    found = {name: figures(build) for name, build in all_specs(options.only)}
    if options.write:
        options.write.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    known = json.loads(options.against.read_text()) if options.against else {}
    recorded = {n: {k: tuple(v) for k, v in figures.items()} for n, figures in known.items()}
    worse = [n for n in found if n in recorded and more_is_sent(n, recorded[n], found[n])]
    new = sorted(found.keys() - recorded.keys()) if options.against else []
    print(
        f"{len(found)} specs, {sum(map(total, found.values()))} bytes; "
        f"{len(worse)} send more, {len(new)} are not recorded"
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
