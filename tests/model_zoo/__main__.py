"""Prove the model zoo: `python -m tests.model_zoo [--only NAME] [--spec NAME] [--table]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.model_zoo.cases import Case
from tests.model_zoo.prove import Outcome, prove_case
from tests.model_zoo.results import load_results, save_results, write_table
from tests.model_zoo.zoo import ZOO


def main() -> int:
    """Prove all cases, or those asked for; 1 if one is not as it should be."""
    options = _options()
    chosen = [case for case in ZOO if not options.only or case.name in options.only]
    results = load_results()
    bad = 0
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = prove_case(case, Path(folder), options.spec)
        bad += sum(not _expected(case, outcome) for outcome in outcomes)
        for outcome in outcomes:
            print(_line(case, outcome), flush=True)
        results[case.name] = {**results.get(case.name, {}), **{o.spec: o for o in outcomes}}
        if options.table:
            save_results(results)
            write_table(results)
    return 1 if bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model_zoo", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="one model; may be repeated")
    parser.add_argument("--spec", default="", help="the one spec to prove")
    parser.add_argument("--table", action="store_true", help="write docs/model-zoo.md")
    return parser.parse_args()


def _expected(case: Case, outcome: Outcome) -> bool:
    return outcome.code == case.refused.get(outcome.spec, "") and (outcome.ok or bool(outcome.code))


def _line(case: Case, outcome: Outcome) -> str:
    split = f", {outcome.split:.0%} split over tp" if outcome.split else ""
    what = outcome.finding or f"error {outcome.error:.1e}{split}"
    mark = "ok " if outcome.ok else "BAD" if not _expected(case, outcome) else "no "
    return f"{mark} {case.name:12} {outcome.spec:12} {outcome.seconds:5.1f} s  {what}"


if __name__ == "__main__":
    sys.exit(main())
