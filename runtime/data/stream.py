"""Batches one after the other, from a place that can be saved and returned to.

A stream speaks torch's `Stateful` protocol. Its state is that of what has been handed out, not of
what lies ready, and counts samples: so a run may go on with other ranks, other batch sizes or
another mesh, and still read every sample once in an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from shardlang.runtime.data.ahead import Ahead
from shardlang.runtime.data.batch import Batch
from shardlang.runtime.data.order import Numbers, Order, Place
from shardlang.runtime.data.samples import Samples
from shardlang.runtime.errors import RunError

READY = 2
"""How many batches lie ready while a step computes."""


@runtime_checkable
class Stream(Protocol):
    """Batches for a run; an iterator that can be saved, resumed and closed."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, object]:
        """Where the stream stands, behind the last batch that it has given."""
        ...

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on from there.

        Raises:
            RunError: SH0653, the data is not what it was.
        """
        ...

    def close(self) -> None:
        """End what makes batches ahead."""
        ...


class Reader(Protocol):
    """What a device reads of a batch, and what it makes of it."""

    def read(self, samples: Samples, numbers: Numbers) -> dict[str, Tensor]:
        """This device's part of every input; called in a thread."""
        ...

    def give(self, read: Mapping[str, Tensor], size: int) -> Batch:
        """The batch of `size` rows around what is read; called by who asks for it."""
        ...


@dataclass(frozen=True, slots=True)
class WholeReader:
    """Every row of every input."""

    names: tuple[str, ...]

    def read(self, samples: Samples, numbers: Numbers) -> dict[str, Tensor]:
        """All inputs of all rows."""
        return samples.read(numbers, self.names)

    def give(self, read: Mapping[str, Tensor], size: int) -> Batch:
        """The same."""
        return dict(read)


class SampleStream:
    """Endless batches of samples, epoch after epoch."""

    def __init__(
        self, samples: Samples, batch: int, order: Order, reader: Reader, ready: int = READY
    ) -> None:
        """Look whether there are samples enough; nothing is read yet.

        Args:
            batch: the rows of a batch.
            order: of as many samples.
            ready: how many batches a thread makes ahead; with 0, none does.

        Raises:
            RunError: SH0605, there are fewer samples than rows in a batch.
        """
        if len(samples) < batch:
            raise RunError(
                "SH0605",
                f"`{samples.name}` holds {len(samples)} samples ({samples.cut}), and a batch has"
                f" {batch}",
                help="give more data, or make the batch or the sequence smaller",
            )
        self._samples, self._batch, self._order = samples, batch, order
        self._reader, self._ready = reader, ready
        self._place = Place()
        self._ahead: Ahead[tuple[dict[str, Tensor], Place]] | None = None

    @property
    def epoch(self) -> float:
        """How many epochs have been read."""
        return self._place.epoch + self._place.position / len(self._samples)

    def shortfall(self, count: int) -> str:
        """What `count` batches leave out or read again because the data ends, in words."""
        held, size = len(self._samples), self._batch
        full = held // size
        if count < full or count * size == held:
            return ""
        left = held - full * size
        said = [f"the last {left} are never read"] * bool(left)
        said += [f"batches are read again until there are {count}"] * (count > full)
        filled = f"{full} batch{'es' * (full > 1)} of {size}"
        return f"the {held} samples of `{self._samples.name}` fill {filled}: {', and '.join(said)}"

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ready and self._ahead is None:
            self._ahead = Ahead(_batches(self._make, self._place), self._ready)
        made, self._place = next(self._ahead) if self._ahead else self._make(self._place)
        return self._reader.give(made, self._batch)

    @property
    def _make(self) -> Callable[[Place], tuple[dict[str, Tensor], Place]]:
        """Makes the batch at a place; it knows nothing of the stream, so a thread may hold it."""
        samples, size, order, reader = self._samples, self._batch, self._order, self._reader

        def make(place: Place) -> tuple[dict[str, Tensor], Place]:
            numbers, behind = order.take(place, size)
            return reader.read(samples, numbers), behind

        return make

    def state_dict(self) -> dict[str, object]:
        """The epoch, how many samples of it have been given, the seed, and what the data is."""
        return {
            "epoch": self._place.epoch,
            "position": self._place.position,
            "seed": self._order.seed,
            **self._identity,
        }

    @property
    def _identity(self) -> dict[str, object]:
        order = self._order
        return {
            "samples": len(self._samples),
            "cut": f"{self._samples.cut}, {'shuffled' if order.shuffle else 'in order'}",
            "data": self._samples.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on behind the last batch that was given, in the order of the seed of then.

        Raises:
            RunError: SH0653, the data, or how it is cut, is not what it was.
        """
        mine, name = self._identity, self._samples.name
        differs = next((key for key in reversed(mine) if state_dict.get(key) != mine[key]), None)
        if differs is not None:
            raise _changed(name, differs, state_dict.get(differs), mine[differs])
        self.close()
        self._order = replace(self._order, seed=number_of(state_dict, "seed"))
        self._place = Place(number_of(state_dict, "epoch"), number_of(state_dict, "position"))

    def close(self) -> None:
        """End the thread; the next batch starts another."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None


def _batches(
    make: Callable[[Place], tuple[dict[str, Tensor], Place]], place: Place
) -> Iterator[tuple[dict[str, Tensor], Place]]:
    while True:
        made, place = make(place)
        yield made, place


def number_of(state: Mapping[str, object], key: str) -> int:
    """One of the numbers of a state.

    Raises:
        RunError: SH0653, it has none of that name.
    """
    found = state.get(key)
    if isinstance(found, int):
        return found
    raise RunError(
        "SH0653",
        f"the checkpoint was saved with data of another kind: its place has no `{key}`",
        help="give the run the data that it had; or begin a new run from the weights",
    )


def _changed(name: str, what: str, then: object, now: object) -> RunError:
    if what == "data":
        said = f"`{name}` holds other data than when the checkpoint was saved"
        help = "put the file back; or begin a new run from the weights of the checkpoint"
    else:
        names = {"cut": "cut as", "samples": "of so many samples:"}
        said = f"the data of the checkpoint was {names[what]} {then}, and is {now} now"
        help = "state it as it was; or begin a new run from the weights of the checkpoint"
    return RunError("SH0653", f"{said}, so samples would be read twice or never", help=help)
