"""A seeded part of the brute-force proof; `python -m shardlang.rules.prove` runs all of it."""

from __future__ import annotations

import os
import random
import sys

import pytest
from click.testing import CliRunner

from shardlang.proof.rules.__main__ import main
from shardlang.proof.rules.every import some_calls
from shardlang.proof.rules.own import own_calls
from shardlang.proof.rules.prove import Tally, prove_call
from tests.broad import sampled
from tests.runtime.forking import completed

OWN = {f"{i}-{call.target.__name__}": call for i, call in enumerate(own_calls())}


@pytest.mark.parametrize("name", sampled(OWN, list(OWN)[::3]))
def test_own_calls(name: str) -> None:
    call, tally = OWN[name], Tally()
    assert [str(f) for f in prove_call("own", call, tally, random.Random(0), most=2)] == []
    assert tally.assignments > 0


@pytest.mark.parametrize("seed", sampled(range(4), (0,)))
def test_samples_of_pytorch(seed: int) -> None:
    chooser, tally = random.Random(seed), Tally()
    failures = [
        str(failure)
        for name, call in some_calls((), tally, chooser, 50)
        for failure in prove_call(name, call, tally, chooser, most=4)
    ]
    assert failures == []
    assert tally.assignments > 100


def test_command() -> None:
    command = [sys.executable, "-m", "shardlang.rules.prove", "--op", "mv", "--op", "dot"]
    done = completed([*command, "--jobs", "2"], os.environ, 300)
    assert done.returncode == 0, done.stderr
    assert "2 ops, 2 aten overloads" in done.stdout and " 0 failures" in done.stdout


def test_a_name_of_which_nothing_is_tried_is_an_error() -> None:
    found = CliRunner().invoke(main, ["--op", "mv", "--op", "aten.mv.default", "--jobs", "1"])
    assert found.exit_code == 1 and "nothing was tried of aten.mv.default:" in found.output
