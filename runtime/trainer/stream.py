"""Batches that a run reads on from where it stood."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardlang.runtime.data import Batch, Stream
from shardlang.runtime.errors import RunError


class Counted:
    """Batches of an iterator, which goes to a place by leaving out those before it."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches, self._given = iter(batches), 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        made = next(self._batches)
        self._given += 1
        return made

    def state_dict(self) -> dict[str, object]:
        """How many batches were given."""
        return {"batches": self._given}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Leave out batches up to a place.

        Raises:
            RunError: SH0605, there are fewer batches, or more were given already.
        """
        wanted = state_dict["batches"]
        if not isinstance(wanted, int) or wanted < self._given:
            raise RunError(
                "SH0605",
                f"{self._given} batches were given, and the run is to go on after {wanted}",
                help="load the state before the first step",
            )
        while self._given < wanted:
            if next(self, None) is None:
                raise RunError(
                    "SH0605",
                    f"there are {self._given} batches, and the run is to go on after {wanted}",
                    help="give the batches that the run was begun with",
                )

    def close(self) -> None:
        """Nothing is made ahead."""


def stream_of(batches: Iterable[Batch]) -> Stream:
    """The batches as a stream, which they may be already."""
    return batches if isinstance(batches, Stream) else Counted(batches)
