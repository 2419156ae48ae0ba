"""At equal bytes kept no more is computed again than by torch's min-cut partitioner."""

from __future__ import annotations

from benchmarks.recompute import BUDGETS, compare


def test_no_more_is_computed_again_than_by_torch() -> None:
    found = compare(layers=2, width=64, rows=2, tokens=32)
    assert [budget for budget, _, _ in found] == list(BUDGETS)
    for budget, theirs, ours in found:
        assert ours.bytes <= theirs.bytes, budget
        assert ours.flops <= theirs.flops, budget
    assert any(theirs.flops > 0 for _, theirs, _ in found)
