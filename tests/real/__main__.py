"""`python -m tests.real SPEC...`: specs on real processes, in float64, beside the plain model.

    python -m tests.real examples/llama/*.shard
    python -m tests.real examples/llama/sp.shard --set b=6 --steps 5
    python -m tests.real --random 200 --seed 7

Every spec runs on as many gloo processes as its mesh has devices, for several steps of SGD. After
each step all outputs, gradients, parameters and buffers are gathered and compared with those of the
unmodified model. A spec that stores parameters runs once more with all of them gathered again for
the backward.
"""

from __future__ import annotations

import argparse
import json
import os
import sys


def main() -> int:
    """Run what the command line names; 0 if all of it is right."""
    options = _options()
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(threads, "1")
    from tests.real.jobs import run_all
    from tests.real.subjects import from_random, from_spec

    sets = dict(pair.split("=", 1) for pair in options.set)
    asked = {path: (from_spec, path, sets) for path in options.specs}
    asked |= {
        f"random {seed}": (from_random, seed)
        for seed in range(options.seed, options.seed + options.random)
    }
    ok = True
    for found in run_all(asked, options.steps, options.jobs, options.timeout):
        ok = ok and found.ok
        print(json.dumps(found.as_json()) if options.json else found, flush=True)
    return 0 if ok else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.real", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=3, help="steps of SGD (3)")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N random programs")
    parser.add_argument("--seed", type=int, default=0, help="the first random program (0)")
    parser.add_argument("--jobs", type=int, default=2, help="how many specs run at a time (2)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one spec (120)")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each spec")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
