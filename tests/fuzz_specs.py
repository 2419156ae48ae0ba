"""Random and mutated specs through parse, format, resolve and bind: nothing may raise.

python -m tests.fuzz_specs --count 100000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections import Counter

from shardlang.bind import ModelNames, bind
from shardlang.grammar.codes import CODES
from shardlang.grammar.formatter import format_tree
from shardlang.grammar.parser import parse
from shardlang.grammar.render import Sources, render_full
from shardlang.spec import load_spec_text
from tests.random_specs import SpecMaker, mutate


def fixed_names() -> ModelNames:
    """The names of a small model that the random patterns half match."""
    params = {
        "head.weight": (16, 8),
        "norm.bias": (8,),
    }
    for layer in range(2):
        params[f"layers.{layer}.up.weight"] = (12, 8)
        params[f"layers.{layer}.down.weight"] = (8, 12)
        params[f"layers.{layer}.scale"] = ()
    modules = ("", "layers.0", "layers.1", "layers.0.mlp", "layers.1.mlp", "norm", "head")
    values = {(module, "out", ""): (4, 8) for module in modules}
    values |= {("layers.0", "out", "0"): (4, 8), ("layers.0", "in", "logits"): (4, 8, 2)}
    return ModelNames(
        params=params,
        buffers={"norm.scale": (8,)},
        inputs={"ids": (4, 8), "labels": (4,), "mask": (8,)},
        modules=modules,
        outputs={"loss": (), "logits": (4, 8, 16)},
        values=values,
        aliases={"tied.weight": "head.weight"},
    )


def make_text(rng: random.Random) -> str:
    """A random spec; about half are mutated."""
    maker = SpecMaker(rng, rng.choice([0.0, 0.0, 0.02, 0.3]))
    text = format_tree(maker.sensible() if rng.random() < 0.8 else maker.anything())
    return mutate(text, rng) if rng.random() < 0.55 else text


def try_text(text: str, names: ModelNames, counts: Counter[str]) -> None:
    """Send one text through the front end; raise where it breaks a promise."""
    tree, findings = parse(text, "fuzz.shard")
    assert (tree is None) == any(finding.is_error for finding in findings), findings
    if tree is not None:
        counts["parsed"] += 1
        printed = format_tree(tree)
        assert parse(printed)[0] == tree, printed
    spec, found = load_spec_text(text, "fuzz.shard", {"b": "4"} if "let b = 2" in text else {})
    findings += found
    if spec is not None:
        counts["resolved"] += 1
        binding, found = bind(spec, names)
        findings += found
        counts["bound"] += binding is not None
    for finding in findings:
        assert finding.code in CODES, finding
        assert finding.severity == "note" or finding.message
        render_full(finding, Sources({"fuzz.shard": text}))
        counts[finding.code] += 1


def fuzz(count: int, seed: int) -> Counter[str]:
    """Try `count` texts; print each that breaks something."""
    names = fixed_names()
    counts: Counter[str] = Counter()
    for index in range(count):
        text = make_text(random.Random(f"{seed}/{index}"))
        counts["tried"] += 1
        try:
            try_text(text, names, counts)
        except Exception:
            counts["broken"] += 1
            print(f"seed {seed} sample {index}: {text!r}")
            traceback.print_exc()
    return counts


def main() -> int:
    """Run the fuzzer and print what it saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    counts = fuzz(options.count, options.seed)
    seconds = time.perf_counter() - start
    summary = ("tried", "parsed", "resolved", "bound", "broken")
    print(" ".join(f"{name}={counts[name]}" for name in summary), f"seconds={seconds:.1f}")
    print(" ".join(f"{code}={counts[code]}" for code in sorted(counts) if code in CODES))
    enough = counts["parsed"] >= 0.3 * counts["tried"]
    return 0 if enough and not counts["broken"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
