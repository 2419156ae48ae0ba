"""Samples: the rows of batches, which can be read in any order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from shardlang.runtime.data.order import Numbers


class Samples(Protocol):
    """Rows of batches, by number.

    Attributes:
        name: where they come from, for messages.
        fingerprint: changes with what is read.
        cut: how what is read is cut into samples, in words.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def cut(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, numbers: Numbers, names: Collection[str]) -> dict[str, Tensor]:
        """Some inputs of some samples: whole rows, in the order of `numbers`.

        Raises:
            RunError: SH0651, the data cannot be read; SH0652, a token is none of the model's.
        """
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """The samples from one number up to another: for training, or for evaluation."""

    samples: Samples
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Where they come from."""
        return self.samples.name

    @property
    def fingerprint(self) -> str:
        """That of all samples."""
        return self.samples.fingerprint

    @property
    def cut(self) -> str:
        """How all are cut, and which part it is."""
        return f"{self.samples.cut}, {self.start} to {self.stop}"

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, numbers: Numbers, names: Collection[str]) -> dict[str, Tensor]:
        """Some inputs of some samples of the part."""
        return self.samples.read(numbers + self.start, names)
