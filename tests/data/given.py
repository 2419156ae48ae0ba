"""Inputs and samples that the tests of data share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.runtime.data.order import Numbers


@dataclass(frozen=True)
class Input:
    """An input as a spec declares it."""

    name: str
    shape: tuple[int, ...] = (2, 4)
    dtype: torch.dtype = torch.int64


BOTH = (Input("input_ids"), Input("labels"))


class Counted:
    """Samples whose only input is their own number; they note what is read of them."""

    name, cut = "counted", "numbers"

    def __init__(self, size: int, fingerprint: str = "those") -> None:
        self.size, self.fingerprint = size, fingerprint
        self.seen: list[int] = []

    def __len__(self) -> int:
        return self.size

    def read(self, numbers: Numbers, names: Collection[str]) -> dict[str, Tensor]:
        self.seen += numbers.tolist()
        return {name: torch.from_numpy(numbers) for name in names}


def rows(batch: object) -> list[int]:
    """The numbers of the samples in a batch."""
    assert isinstance(batch, dict)
    found: Sequence[int] = batch["x"].tolist()
    return list(found)
