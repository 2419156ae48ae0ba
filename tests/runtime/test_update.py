"""The update of one device's parts."""

from __future__ import annotations

import torch
from torch import nn

from shardlang.runtime.optim import DEFAULT, make_optimizer
from shardlang.runtime.update import Part


def test_a_gradient_may_lie_otherwise_than_its_parameter() -> None:
    """Its numbers are taken by their indices, by an optimizer of one kernel too."""
    value = torch.linspace(-1, 1, 60, dtype=torch.float64).view(2, 6, 5)
    given = torch.linspace(-3, 2, 60, dtype=torch.float64).view(2, 5, 6).transpose(1, 2)
    part = Part(value.clone(), nn.Parameter(value.clone()), None, False)
    part.tensor.grad = part.of_gradient(given)
    make_optimizer([part.tensor], *DEFAULT).step()
    plain = nn.Parameter(value.clone())
    plain.grad = given.contiguous()
    torch.optim.AdamW([plain], **DEFAULT[1], foreach=False).step()
    torch.testing.assert_close(part.tensor, plain, rtol=0, atol=1e-12)
