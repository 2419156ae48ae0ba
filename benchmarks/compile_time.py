"""Compile time of Llama 70B over 8 tensor-parallel devices, on fake tensors: capture and passes.

No parameter is allocated: the largest of these models has 70 billion.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardlang.bind import bind
from shardlang.capture import capture
from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import input_specs, marked, names_of, source_of, statements_of
from shardlang.passes.pipeline import run_passes
from shardlang.spec import load_spec

SPEC = Path(__file__).parent / "llama70b.shard"
LAYERS = (2, 8, 32, 80)


def measure(layers: int) -> dict[str, Any]:
    """Seconds of each stage for a model of `layers` layers."""
    spec, findings = load_spec(SPEC, {"layers": str(layers)})
    assert spec is not None, findings
    seconds: dict[str, float] = {}
    source = source_of(spec)
    inputs = input_specs(spec, source)
    with timed(seconds, "capture"):
        captured = capture(source, inputs, marked(spec))
    with timed(seconds, "bind"):
        binding, findings = bind(spec, names_of(captured))
    assert binding is not None, findings
    with timed(seconds, "build"):
        graph = build_graph(captured, statements_of(spec, binding, captured))
    graph = run_passes(graph)
    passes: dict[str, float] = graph.info.seconds
    nodes = len(captured.graph.nodes)
    return {"layers": layers, "nodes": nodes, "seconds": seconds, "passes": passes}


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block takes."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def table(rows: list[dict[str, Any]]) -> str:
    """Stages down, layer counts across."""
    stages = [*rows[0]["seconds"], *rows[0]["passes"]]
    lines = ["layers".ljust(20) + "".join(f"{row['layers']:>10}" for row in rows)]
    lines.append("nodes".ljust(20) + "".join(f"{row['nodes']:>10}" for row in rows))
    for stage in stages:
        cells = (row["seconds"].get(stage, row["passes"].get(stage)) for row in rows)
        lines.append(stage.ljust(20) + "".join(f"{cell:>8.2f} s" for cell in cells))
    total = "".join(f"{sum(row['passes'].values()):>8.2f} s" for row in rows)
    share = "".join(
        f"{sum(row['passes'].values()) / row['seconds']['capture']:>10.2f}" for row in rows
    )
    return "\n".join([*lines, "all passes".ljust(20) + total, "passes / capture".ljust(20) + share])


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))
    parser.add_argument("--json", action="store_true", help="one JSON line per size")
    args = parser.parse_args()
    measure(2)  # imports and caches
    rows = []
    for layers in args.layers:
        rows.append(measure(layers))
        if args.json:
            print(json.dumps(rows[-1]), flush=True)
    if not args.json:
        print(table(rows))


if __name__ == "__main__":
    main()
