"""Prove the model zoo: `python -m tests.model_zoo [--only NAME] [--spec NAME] [--table]`.

With `--init` the specs are those that `shardlang init` writes, and `--spec` names a mesh.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.model_zoo.cases import Case
from tests.model_zoo.init import REFUSED, Written, meshes_of, prove_written
from tests.model_zoo.init_table import load_written, save_written
from tests.model_zoo.prove import Outcome, prove_case
from tests.model_zoo.results import load_results, save_results, write_table
from tests.model_zoo.zoo import ZOO


def main() -> int:
    """Prove all cases, or those asked for; 1 if one is not as it should be."""
    options = _options()
    chosen = [case for case in ZOO if not options.only or case.name in options.only]
    prove = _prove_written if options.init else _prove
    return 1 if prove(chosen, options) else 0


def _prove(chosen: list[Case], options: argparse.Namespace) -> int:
    """Prove the zoo's own specs; how many are not as they should be."""
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
    return bad


def _prove_written(chosen: list[Case], options: argparse.Namespace) -> int:
    """Prove the specs that `init` writes; how many are not as they should be."""
    results = load_written()
    bad = 0
    for case in chosen:
        meshes = [mesh for mesh in meshes_of(case) if options.spec in ("", mesh)]
        for mesh in meshes:
            with tempfile.TemporaryDirectory() as folder:
                one = prove_written(case, mesh, Path(folder))
            bad += one.code != REFUSED.get(case.name, "") or bool(one.finding) != bool(one.code)
            print(_written_line(case, one), flush=True)
            results.setdefault(case.name, {})[mesh] = one
        if options.table:
            save_written(results)
            write_table(load_results())
    return bad


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model_zoo", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="one model; may be repeated")
    parser.add_argument("--spec", default="", help="the one spec to prove")
    parser.add_argument("--init", action="store_true", help="specs as `init` writes them")
    parser.add_argument("--table", action="store_true", help="write docs/model-zoo.md")
    return parser.parse_args()


def _expected(case: Case, outcome: Outcome) -> bool:
    return outcome.code == case.refused.get(outcome.spec, "") and (outcome.ok or bool(outcome.code))


def _line(case: Case, outcome: Outcome) -> str:
    split = f", {outcome.split:.0%} split over tp" if outcome.split else ""
    what = outcome.finding or f"error {outcome.error:.1e}{split}"
    mark = "ok " if outcome.ok else "BAD" if not _expected(case, outcome) else "no "
    return f"{mark} {case.name:12} {outcome.spec:12} {outcome.seconds:5.1f} s  {what}"


def _written_line(case: Case, one: Written) -> str:
    split = f", {one.percent:.1f}% split" if one.percent is not None else ""
    sent = f", sends {one.sent} bytes, by hand {one.by_hand}" if one.by_hand else ""
    what = one.finding or f"error {one.error:.1e}{split}{sent}"
    mark = "ok " if one.ok else "no " if one.code == REFUSED.get(case.name) else "BAD"
    return f"{mark} {case.name:18} {one.mesh:12} {one.seconds:5.1f} s  {what}"


if __name__ == "__main__":
    sys.exit(main())
