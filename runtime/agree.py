"""Comparing the ranks: what must be the same on all of them, in a few bytes.

Ranks that are called in different ways wait for each other in different collectives, for ever, and
ranks with different batches train on a mixture that nobody asked for.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from shardlang.runtime.calls import Call
from shardlang.runtime.changes import steps_since
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.replicas import SAME_BATCHES, checksum
from shardlang.runtime.tensor_files import saved_since
from shardlang.runtime.tracebacks import first_line
from shardlang.runtime.watch import named

T = TypeVar("T")

ON_DEVICE_BATCHES = 3
"""How many batches are compared that lie on a GPU, where looking at them waits for it."""

_MOST_NUMBERS = 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """A call on this rank, as all others must make it too.

    Attributes:
        given: its tensors, by name.
        lines: what else of it must be alike, in words.
        compared: whole inputs, whose values must be alike.
        changed: a number of which each rank learns the greatest.
    """

    call: Call
    given: Mapping[str, Tensor]
    lines: tuple[str, ...] = ()
    compared: Mapping[str, Tensor] = field(default_factory=dict)
    changed: int = 0


@dataclass(frozen=True, slots=True)
class _Said:
    """What a rank says where the ranks differ: its call, or why it makes none."""

    lines: tuple[str, ...] = ()
    sums: Mapping[str, int] = field(default_factory=dict)
    refusal: tuple[str, str, str, tuple[str, ...]] | None = None
    call: Call | None = None
    changed: int = 0

    def in_words(self) -> _Said:
        """The same, with the call among the lines."""
        lines = self.call.lines() if self.call is not None else ()
        return _Said((*lines, *self.lines), self.sums, self.refusal)


class Agreement:
    """Compares the calls of all ranks, over a group of the host that no program uses on GPUs.

    A rank that fails before it can call takes part too: it says why, and all ranks raise that.
    """

    def __init__(self, groups: Groups) -> None:
        """Collective: construct it on every rank."""
        self._world, self._device = groups.mesh.devices, groups.device
        self._numbers: dict[Call, int] = {}
        self._batches = 0
        self._host = groups.on_host()

    @property
    def _process_group(self) -> dist.ProcessGroup | None:
        return self._host.process_group if self._host else None

    def __deepcopy__(self, memo: dict[int, object]) -> Agreement:
        """Process groups have no copies."""
        return self

    def check(self, ask: Callable[[], Asked]) -> Asked:
        """Compare how all ranks call, and the values of whole inputs. Collective.

        Args:
            ask: gives this rank's call. What it raises is raised on every rank.

        Returns:
            The call, with the greatest `changed` of all ranks.

        Raises:
            RunError: what `ask` raised on some rank, with the rank's number unless all raise alike;
                SH0612, on every rank, naming a rank that differs from rank 0.
        """
        if self._world == 1:
            return ask()
        asked, changed = self._together("comparison of the calls of all ranks", ask, self._said)
        self._batches += bool(asked.compared)
        return replace(asked, changed=changed)

    def together(self, work: Callable[[], T]) -> T:
        """Do what may fail on one rank alone, on all. Collective.

        Raises:
            RunError: what `work` raised on some rank, with the rank's number unless all raise
                alike.
        """
        if self._world == 1:
            return work()
        return self._together("wait for work of each rank", work, lambda _: _Said())[0]

    def _said(self, asked: Asked) -> _Said:
        lines = (*asked.lines, *steps_since(), *saved_since())
        on_host = all(x.device.type == "cpu" for x in asked.compared.values())
        if not on_host and self._batches >= ON_DEVICE_BATCHES:
            return _Said(lines, call=asked.call, changed=asked.changed)
        sums = {n: checksum(x) for n, x in sorted(asked.compared.items())}
        return _Said(lines, sums, call=asked.call, changed=asked.changed)

    def check_draws(self) -> None:
        """Compare the states of the ranks' random number generators. Collective.

        Raises:
            RunError: SH0612, on every rank: their draws would not be those of one device.
        """
        if self._world == 1:
            return
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        mine = [checksum(state) for state in states]
        if not named("comparison of the random states", self._same, mine)[0]:
            raise RunError(
                "SH0612",
                "the ranks draw random numbers from different states, and values that several"
                " devices hold would differ",
                help="call `torch.manual_seed` with the same number on every rank; give draws that"
                " differ between ranks a generator of their own",
            )

    def _together(
        self, label: str, work: Callable[[], T], told: Callable[[T], _Said]
    ) -> tuple[T, int]:
        """What the work gives, if that of all ranks is told alike; and the greatest `changed`."""
        result, said, error = None, _Said(), None
        try:
            result = work()
            said = told(result)
        except Exception as failure:
            error, said = failure, _Said(refusal=_refusal(failure))
        rest = zlib.crc32(repr((said.lines, said.sums, said.refusal)).encode())
        numbers = [self._number(said.call), rest]
        same, changed = named(label, self._same, numbers, said.changed)
        if not same:
            raise self._difference(said.in_words()) from error
        if error is not None:
            raise error
        return cast(T, result), changed

    def _number(self, call: Call | None) -> int:
        """A number for a call, which is computed once; 0 for none."""
        if call is None:
            return 0
        if len(self._numbers) >= _MOST_NUMBERS:
            self._numbers.clear()
        if call not in self._numbers:
            digest = hashlib.sha256("\n".join(call.lines()).encode()).digest()
            self._numbers[call] = int.from_bytes(digest[:7], "big") + 1
        return self._numbers[call]

    def _same(self, numbers: Sequence[int], changed: int = 0) -> tuple[bool, int]:
        """Whether all ranks give the same numbers, and the greatest that each gives beside."""
        both = torch.tensor([*numbers, *(-number for number in numbers), changed])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self._process_group)
        *pairs, greatest = both.tolist()
        count = len(numbers)
        return pairs[:count] == [-number for number in pairs[count:]], greatest

    def _difference(self, said: _Said) -> RunError:
        """The error that names a rank. Collective."""
        found = [said] * self._world
        dist.all_gather_object(found, said, group=self._process_group)
        for rank, one in enumerate(found):
            if one.refusal is not None:
                code, message, help, notes = one.refusal
                return RunError(code, f"rank {rank} failed: {message}", help=help, notes=notes)
        rank = next(i for i, one in enumerate(found) if one != found[0])
        return _calls_differ(rank, found[0], found[rank])


def _refusal(error: Exception) -> tuple[str, str, str, tuple[str, ...]]:
    """What an error says to the other ranks."""
    if isinstance(error, RunError):
        return error.code, error.message, error.help, error.notes
    return "SH0603", first_line(error), "fix what it says", ()


def _calls_differ(rank: int, first: _Said, other: _Said) -> RunError:
    if other.lines != first.lines:
        want, got = _first_difference(first.lines, other.lines)
        if "shards saved" in want + got:
            return _saved_alone(rank, want, got)
        return RunError(
            "SH0612",
            f"the ranks are called in different ways: rank 0 with {want}, rank {rank} with {got}",
            help="call the module on every rank with the same sizes, arguments and modes",
        )
    name = next(n for n in first.sums if first.sums[n] != other.sums[n])
    return RunError(
        "SH0612",
        f"`{name}` has other values on rank {rank} than on rank 0, and `shard_inputs` takes the"
        " same whole batch on every rank",
        help=SAME_BATCHES,
    )


def _saved_alone(rank: int, want: str, got: str) -> RunError:
    return RunError(
        "SH0622",
        f"the ranks have not saved alike: rank 0 with {want}, rank {rank} with {got} since the"
        " last call; what one rank saves, with `torch.save` or under `no_dist`, is its shards"
        " alone",
        help="save on every rank, each to a file of its own; or all together with"
        " `torch.distributed.checkpoint.save`; or gather on every rank with `full_tensor()`, and"
        " save on one",
    )


def _first_difference(one: Sequence[str], other: Sequence[str]) -> tuple[str, str]:
    """What one list says and the other does not."""
    want = next((line for line in one if line not in other), "nothing more")
    got = next((line for line in other if line not in one), "nothing more")
    return want, got
