"""A sample of the spec fuzzer."""

from __future__ import annotations

from tests.fuzz_specs import fuzz


def test_no_random_spec_breaks_the_front_end() -> None:
    counts = fuzz(2000, seed=0)
    assert counts["broken"] == 0
    assert counts["parsed"] >= 0.3 * counts["tried"]
    assert counts["bound"] >= 50
