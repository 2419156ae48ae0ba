"""Streams: every sample once an epoch, whatever happens to ranks, batches and processes."""

from __future__ import annotations

import itertools
import random
import threading
import traceback
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardlang.runtime.data import (
    Batch,
    NumberedStream,
    Order,
    OwnStream,
    Part,
    Place,
    SampleStream,
    WholeReader,
)
from shardlang.runtime.data.ahead import Ahead
from shardlang.runtime.data.order import permuted
from shardlang.runtime.errors import RunError
from shardlang.training.evaluating import warn_of_shortfall
from tests.data.given import Counted, rows


def stream(
    samples: Counted | Part, batch: int, seed: int = 3, shuffle: bool = True, ready: int = 0
) -> SampleStream:
    """The numbers of samples, in batches."""
    order = Order(len(samples), seed, shuffle)
    return SampleStream(samples, batch, order, WholeReader(("x",)), ready)


@given(st.integers(1, 9000), st.integers(0, 2**40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    found = permuted(np.arange(size), size, f"{seed}/{epoch}")
    assert sorted(found.tolist()) == list(range(size))


def test_the_order_is_the_same_on_every_machine() -> None:
    """The numbers are pinned: a checkpoint of today is resumed by another version."""
    assert permuted(np.arange(6), 6, "0/0").tolist() == [4, 3, 5, 1, 2, 0]
    far = permuted(np.array([0, 10**12 - 1]), 10**12, "7/2")
    assert far.tolist() == [212829616224, 852212497682]


def test_orders_of_two_epochs_are_independent_and_even() -> None:
    """Each number is sent to each tenth of the places about as often, by 400 epochs."""
    size, epochs = 50, 400
    sent = np.stack([permuted(np.arange(size), size, f"1/{epoch}") for epoch in range(epochs)])
    counts = np.stack([np.bincount(row // 5, minlength=10) for row in sent.T])
    expected = epochs / 10
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 350 < statistic < 560  # chi-squared with 450 degrees of freedom: within 4 deviations
    assert len({tuple(row) for row in sent.tolist()}) == epochs


@given(
    st.integers(7, 60),
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_no_sample_is_lost_or_doubled_by_restarts_with_other_batches(
    size: int, runs: list[tuple[int, int]]
) -> None:
    seen: list[int] = []
    state: dict[str, object] | None = None
    for batch, steps in runs:
        one = stream(Counted(size), batch)
        if state is not None:
            one.load_state_dict(state)
        for given_batch in itertools.islice(one, steps):
            seen += rows(given_batch)
        state = one.state_dict()
    whole = len(seen) // size
    for epoch in range(whole):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert len(set(seen[whole * size :])) == len(seen) - whole * size
    assert state is not None
    assert (state["epoch"], state["position"]) in (
        (whole, len(seen) % size),
        (whole - 1, size),
    )


def test_the_state_is_that_of_what_was_given_not_of_what_lies_ready() -> None:
    ahead, plain = stream(Counted(20), 3, ready=4), stream(Counted(20), 3)
    given_now = [rows(next(ahead)) for _ in range(5)]
    assert given_now == [rows(next(plain)) for _ in range(5)]
    assert ahead.state_dict() == plain.state_dict()
    resumed = stream(Counted(20), 3, seed=8, ready=2)
    resumed.load_state_dict(ahead.state_dict())
    assert rows(next(resumed)) == rows(next(plain))
    ahead.close(), resumed.close()


def test_the_last_samples_of_an_epoch_are_left_out_if_stated() -> None:
    order = Order(10, 0, drop_last=True)
    place = Place()
    taken = []
    for _ in range(6):
        numbers, place = order.take(place, 4)
        taken.append(set(numbers.tolist()))
    assert all(len(a | b) == 8 for a, b in itertools.pairwise(taken[:2]))
    assert place == Place(2, 8)


@pytest.mark.parametrize(
    ("size", "count", "said"),
    [
        (7, 2, "the last 2 are never read, and batches are read again until there are 2"),
        (7, 1, "the 7 samples of `counted` fill 1 batch of 5: the last 2 are never read"),
        (10, 3, "the 10 samples of `counted` fill 2 batches of 5: batches are read again until"),
        (10, 2, ""),
        (12, 1, ""),
    ],
)
def test_an_evaluation_says_what_it_leaves_out(size: int, count: int, said: str) -> None:
    given = stream(Counted(size), 5)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warn_of_shortfall(given, count)
    texts = [str(one.message) for one in warned]
    assert len(texts) == bool(said) and all(said in text for text in texts), texts


def test_parts_have_no_sample_in_common() -> None:
    samples = Counted(13)
    train, held_out = Part(samples, 0, 10), Part(samples, 10, 13)
    seen = [rows(b) for b in itertools.islice(stream(train, 5), 2)]
    kept = rows(next(stream(held_out, 3, shuffle=False)))
    assert sorted(itertools.chain(*seen)) == list(range(10))
    assert kept == [10, 11, 12]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: stream(Counted(20, "others"), 3), "`counted` holds other data than when"),
        (lambda: stream(Counted(21), 3), "was of so many samples: 20, and is 21 now"),
        (lambda: stream(Counted(20), 3, shuffle=False), "was cut as numbers, shuffled"),
    ],
)
def test_other_data_than_that_of_the_checkpoint_is_refused(other: object, said: str) -> None:
    state = stream(Counted(20), 3).state_dict()
    assert callable(other)
    with pytest.raises(RunError) as caught:
        other().load_state_dict(state)
    assert caught.value.code == "SH0653"
    assert said in caught.value.message and caught.value.help


class Failing(Counted):
    """Samples of which the third batch cannot be read."""

    def read(self, numbers, names):  # type: ignore[no-untyped-def]
        if len(self.seen) >= 6:
            raise OSError("the disk is gone")
        return super().read(numbers, names)


def test_an_error_of_the_thread_reaches_the_loop_in_its_place_with_its_traceback() -> None:
    one = stream(Failing(30), 3, ready=4)
    assert [len(rows(next(one))) for _ in range(2)] == [3, 3]
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(one)
    assert "in read" in "".join(traceback.format_tb(caught.value.__traceback__))
    with pytest.raises(StopIteration):
        next(one)


def test_no_more_is_made_ahead_than_is_asked_for_and_no_thread_stays() -> None:
    samples, others = Counted(1000), threading.enumerate()
    one = stream(samples, 2, ready=3)
    next(one)
    new = (t for t in threading.enumerate() if t not in others)
    thread = next(t for t in new if t.name == "shardlang-data")
    for _ in range(100):
        if len(samples.seen) == 2 * (1 + 3 + 1):
            break
        threading.Event().wait(0.02)
    threading.Event().wait(0.1)
    assert len(samples.seen) == 2 * (1 + 3 + 1)
    one.close()
    assert not thread.is_alive()
    endless: Ahead[int] = Ahead(itertools.count(), 2)
    worker = endless._thread
    del endless
    assert not worker.is_alive()


def draws(seed: int) -> Iterator[Batch]:
    """Seven batches that draw from every global generator."""
    for _ in range(7):
        yield {"x": torch.rand(2), "y": random.random(), "z": float(np.random.rand())}


def numbers(batch: Batch) -> list[object]:
    """What is in such a batch."""
    x = batch["x"]
    assert isinstance(x, torch.Tensor)
    return [*x.tolist(), batch["y"], batch["z"]]


def test_the_batches_of_a_model_file_are_resumed_whatever_the_model_draws() -> None:
    first = OwnStream(draws, 5)
    before = torch.get_rng_state()
    plain = [numbers(batch) for batch in first]
    assert len(plain) == 7 and torch.equal(torch.get_rng_state(), before)
    again = OwnStream(draws, 5)
    for wanted in plain[:3]:
        torch.rand(11), random.random(), np.random.rand(3)
        assert numbers(next(again)) == wanted
    resumed = OwnStream(draws, 6)
    resumed.load_state_dict(again.state_dict())
    assert [numbers(batch) for batch in resumed] == plain[3:]
    assert numbers(next(OwnStream(draws, 6))) != plain[0]
    with pytest.raises(RunError, match="end before the 8"):
        resumed.load_state_dict({"taken": 8, "seed": 5})
    with pytest.raises(RunError, match="data of another kind: its place has no `taken`"):
        resumed.load_state_dict(stream(Counted(20), 3).state_dict())


def test_numbered_batches_are_resumed_by_their_number() -> None:
    one = NumberedStream(lambda number: {"x": number}, 10)
    assert [batch["x"] for batch in itertools.islice(one, 3)] == [10, 11, 12]
    other = NumberedStream(lambda number: {"x": number}, 10)
    other.load_state_dict(one.state_dict())
    assert next(other)["x"] == 13
