"""A sample of the spec fuzzer."""

from __future__ import annotations

import pytest

from tests.broad import sampled
from tests.fuzz_specs import fuzz


@pytest.mark.parametrize("seed", sampled(range(4), (0,)))
def test_no_random_spec_breaks_the_front_end(seed: int) -> None:
    counts = fuzz(500, seed)
    assert counts["broken"] == 0
    assert counts["parsed"] >= 0.3 * counts["tried"]
    assert counts["bound"] >= 10
