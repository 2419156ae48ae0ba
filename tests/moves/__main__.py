"""Compare drawn moves with their meaning: `python -m tests.moves [--cases N] [--first N]`.

With `--processes N` some hundred cases are run on N gloo processes instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.moves.cases import case
from tests.moves.check import differences
from tests.runtime.spawn import spawn


def main() -> int:
    """Run the cases asked for; 1 if there are differences."""
    parser = argparse.ArgumentParser(prog="python -m tests.moves", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    return on_processes(options.processes) if options.processes else in_process(options)


def on_processes(count: int) -> int:
    """Print what ranks find in the cases for so many devices; 1 if there are differences."""
    with tempfile.TemporaryDirectory() as out:
        found = spawn("tests.moves.on_ranks:sample", count, Path(out), 600)
    wrong = [line for _, lines in found for line in lines]
    print(*wrong[:20], sep="\n")
    print(f"{found[0][0]} cases on {count} processes, {len(wrong)} differences")
    return 1 if wrong else 0


def in_process(options: argparse.Namespace) -> int:
    """Print the cases tried in the simulator, by kind of reshard; 1 if there are differences."""
    tried: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for number in range(options.first, options.first + options.cases):
        one = case(number)
        tried[one.kind] += 1
        found = differences(one)
        wrong[one.kind] += bool(found)
        for line in found[:3]:
            print(line)
    for kind, count in tried.items():
        print(f"{kind:12} {count:6} cases, {wrong[kind]} differences")
    print(f"{'all':12} {tried.total():6} cases, {wrong.total()} differences")
    return 1 if wrong.total() else 0


if __name__ == "__main__":
    sys.exit(main())
