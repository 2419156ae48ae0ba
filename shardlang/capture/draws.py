"""The numbers that a recorded constructor draws: those of torch's generator, in its own order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

PassBy = Callable[[int, "Draws"], None]
"""Runs the random call at a position of the tape for nothing but its draws."""


class Draws:
    """Where torch's generator stands in front of every random call on a tape, under one seed.

    A generator cannot skip numbers, so every call before the one that is wanted is run once, on
    memory that is let go at once. Of each the state is kept (5 kB), so that a call may be run
    again, and in any order.
    """

    def __init__(self, seed: int, positions: Sequence[int], pass_by: PassBy) -> None:
        self.seed = seed
        self._positions = tuple(positions)
        self._numbers = {position: n for n, position in enumerate(self._positions)}
        self._pass_by = pass_by
        # In one piece: small ones, each made between two tensors of the model, would lie in the
        # memory that the first of them gives back, so that the second finds no room there.
        first = torch.Generator().manual_seed(seed).get_state()
        self._states = first.new_empty(len(self._positions) + 1, len(first))
        self._states[0], self._known = first, 1

    @contextlib.contextmanager
    def at(self, position: int) -> Iterator[None]:
        """Run the body, which makes the random call at `position`, with the generator there."""
        number = self._numbers[position]
        while self._known <= number:
            self._pass_by(self._positions[self._known - 1], self)
        # A copy: torch crashes on a state that is a view behind the beginning of its memory.
        torch.set_rng_state(self._states[number].clone())
        yield
        if self._known == number + 1:
            self._states[self._known] = torch.get_rng_state()
            self._known += 1
