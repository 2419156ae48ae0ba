"""Rules of products by groups of rows, proven by brute force."""

from __future__ import annotations

import torch

from shardlang.proof.rules.own import below, numbers
from shardlang.proof.rules.prove import failures_of
from shardlang.rules.experts.local_grouped import grouped_mm

GROUPS = torch.tensor([2, 0, 4, 2, 2, 0, 4])
"""Of five groups two have no row."""


def test_rows_go_with_the_matrix_of_their_group() -> None:
    x, weight = numbers(7, 6), numbers(5, 6, 4)
    x.requires_grad_()
    weight.requires_grad_()
    want = torch.einsum("si,sio->so", x, weight[GROUPS])
    found = grouped_mm(x, weight, GROUPS)
    torch.testing.assert_close(found, want)
    cotangent = numbers(7, 4, seed=1)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight), cotangent),
        torch.autograd.grad(want, (x, weight), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_group_that_is_no_matrix_gives_zeros() -> None:
    found = grouped_mm(numbers(3, 6), numbers(5, 6, 4), torch.tensor([5, 1, 5]))
    assert not found[0].any() and found[1].all() and not found[2].any()


def test_product() -> None:
    op = torch.ops.shardlang.grouped_mm.default
    assert failures_of(op, numbers(7, 6), numbers(5, 6, 4), GROUPS) == []
    assert failures_of(op, numbers(4, 3), numbers(7, 3, 5), below(7, 4)) == []


def test_gradient_of_the_matrices() -> None:
    op = torch.ops.shardlang.grouped_outer.default
    assert failures_of(op, numbers(7, 6), numbers(7, 4), GROUPS, 5) == []
