"""Batches that a model file brings, or that are made by number, as streams."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch

from shardlang.runtime.data.batch import Batch
from shardlang.runtime.data.stream import number_of
from shardlang.runtime.errors import RunError


class OwnStream:
    """The batches of an iterator that can be made anew; it is resumed by skipping.

    While it makes a batch, the global random generators are its own, seeded once: so its batches
    do not depend on what a model draws between them, and are the same after a resume.
    """

    def __init__(self, make: Callable[[int], Iterator[Batch] | None], seed: int) -> None:
        """`make` gives the iterator of a seed from its beginning, or None where there is none."""
        self._make, self._seed = make, seed
        self._restart()

    def _restart(self) -> None:
        self._generators = _Generators(self._seed)
        self._taken = 0
        with self._generators:
            self._batches = self._make(self._seed)

    @property
    def is_given(self) -> bool:
        """Whether there are batches."""
        return self._batches is not None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with self._generators:
            batch = next(self._batches or iter(()))
        self._taken += 1
        return batch

    def state_dict(self) -> dict[str, object]:
        """How many batches have been taken."""
        return {"taken": self._taken, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Make the batches anew, and skip those that have been taken.

        Raises:
            RunError: SH0653, there are fewer batches than have been taken.
        """
        self._seed, taken = number_of(state_dict, "seed"), number_of(state_dict, "taken")
        self._restart()
        for _ in range(taken):
            if next(self, None) is None:
                raise RunError(
                    "SH0653",
                    f"the model's batches end before the {taken} that the checkpoint has taken",
                    help="let `batches(seed)` give what it gave; or begin a new run",
                )

    def close(self) -> None:
        """Nothing is made ahead."""


class NumberedStream:
    """Endless batches, each made from its number alone."""

    def __init__(self, make: Callable[[int], Batch], seed: int) -> None:
        """`make` takes the seed and the batch's number together."""
        self._make, self._seed, self._taken = make, seed, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._make(self._seed + self._taken)
        self._taken += 1
        return batch

    def state_dict(self) -> dict[str, object]:
        """How many batches have been taken."""
        return {"taken": self._taken, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on with the next number, by the seed of then.

        Raises:
            RunError: SH0653, the state is that of other batches.
        """
        self._seed, self._taken = number_of(state_dict, "seed"), number_of(state_dict, "taken")

    def close(self) -> None:
        """Nothing is made ahead."""


class _Generators:
    """A context in which the global generators of torch, numpy and Python are its own."""

    def __init__(self, seed: int) -> None:
        torch_state = torch.Generator().manual_seed(seed).get_state()
        numpy_state = np.random.RandomState(seed % 2**32).get_state(legacy=True)
        self._states = torch_state, numpy_state, random.Random(seed).getstate()

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    def _swap(self) -> None:
        theirs = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()
        torch.set_rng_state(self._states[0])
        np.random.set_state(self._states[1])
        random.setstate(self._states[2])
        self._states = theirs
