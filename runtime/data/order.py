"""The order of the samples: a permutation for each epoch, computed and not stored.

A Feistel network permutes the numbers below a power of two; numbers that are too large are permuted
again until they are not (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). It takes
no memory of the size of the data, and gives the sample at any place of an epoch at once. Few
samples, for which the network knows too few permutations, are sorted by a hash of their number. The
order depends on the seed, the epoch and the number of samples alone: not on ranks, batches or
machines.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.int64]
"""Sample numbers, one dim."""

_ROUNDS = 8
_FEW = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream stands: so many samples of an epoch are behind."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a number of samples, epoch after epoch.

    Attributes:
        shuffle: whether every epoch has an order of its own, or all have that of the data.
        drop_last: whether the rest of an epoch that fills no batch is left out; else the next
            epoch's first samples fill it up.
    """

    size: int
    seed: int
    shuffle: bool = True
    drop_last: bool = False

    def take(self, place: Place, count: int) -> tuple[Numbers, Place]:
        """The next `count` samples, at most as many as there are, and the place behind them."""
        if self.drop_last and place.position + count > self.size:
            place = Place(place.epoch + 1)
        left = min(count, self.size - place.position)
        first = self._numbers(place, left)
        if left == count:
            return first, Place(place.epoch, place.position + count)
        behind = Place(place.epoch + 1, count - left)
        return np.concatenate([first, self._numbers(Place(behind.epoch), count - left)]), behind

    def _numbers(self, place: Place, count: int) -> Numbers:
        positions = np.arange(place.position, place.position + count, dtype=np.int64)
        if not self.shuffle:
            return positions
        return permuted(positions, self.size, f"{self.seed}/{place.epoch}")


def permuted(positions: Numbers, size: int, key: str) -> Numbers:
    """Where a permutation of the numbers below `size`, chosen by `key`, sends some of them."""
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    if size <= _FEW:
        return _sorted(size, keys)[positions]
    half = ((size - 1).bit_length() + 1) // 2
    found = _network(positions.astype(np.uint64), half, keys)
    while (outside := found >= size).any():
        found[outside] = _network(found[outside], half, keys)
    return found.astype(np.int64)


def _sorted(size: int, keys: NDArray[np.uint64]) -> Numbers:
    """The numbers below `size`, sorted by their hashes."""
    numbers = np.arange(size, dtype=np.uint64)
    hashes = _mixed(_mixed(numbers + keys[0]) + keys[1])
    return np.argsort(hashes, kind="stable").astype(np.int64)


def _network(
    numbers: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass of the network over numbers of `2 * half` bits."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> bits, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number mixed in all of its bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
