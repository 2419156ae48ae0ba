"""The whole proof, op by op, on several processes."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.own import own_calls
from shardlang.proof.rules.prove import Tally, prove_call
from shardlang.proof.rules.samples import (
    DTYPES,
    Skipped,
    a_sample,
    calls_in,
    calls_of_sample,
    has_rule,
    op_infos,
)
from shardlang.rules.schema import short_name


@dataclass(frozen=True, slots=True)
class Task:
    """The proof of one op.

    Attributes:
        op: its name in PyTorch's op_db; its overload's name for a call of ours.
        is_own: whether the calls are ours.
        most: the largest number of splits that are tried of one call; None for all.
    """

    op: str
    is_own: bool
    dtypes: tuple[torch.dtype, ...] = DTYPES
    most: int | None = None
    seed: int = 0

    def run(self) -> Tally:
        """Prove all calls of the op."""
        torch.set_num_threads(1)
        chooser, tally = random.Random(f"{self.seed}/{self.op}"), Tally()
        calls = own_calls_of(self.op) if self.is_own else calls_of_op(self.op, tally, self.dtypes)
        for call in calls:
            for _ in prove_call(self.op, call, tally, chooser, self.most):
                pass
        return tally


def tasks(
    names: tuple[str, ...], dtypes: tuple[torch.dtype, ...], most: int | None, seed: int
) -> list[Task]:
    """One task for each op, or for each that is named; ours first."""
    own = dict.fromkeys(_name(call) for call in own_calls())
    found = [Task(name, True, dtypes, most, seed) for name in own]
    found += [Task(name, False, dtypes, most, seed) for name in op_infos()]
    return [task for task in found if not names or task.op in names]


def run_all(work: list[Task], jobs: int) -> Iterator[tuple[Task, Tally]]:
    """Run tasks on `jobs` processes; yields what each has shown, in the order of `work`."""
    if jobs == 1 or len(work) == 1:
        yield from ((task, task.run()) for task in work)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from zip(work, pool.map(Task.run, work), strict=True)


def own_calls_of(op: str) -> Iterator[AtenCall]:
    """Our own calls of one overload."""
    return (call for call in own_calls() if _name(call) == op)


def _name(call: AtenCall) -> str:
    return short_name(call.target)


def calls_of_op(
    op: str, tally: Tally, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> Iterator[AtenCall]:
    """The distinct calls of one op's samples that have a rule."""
    seen: set[str] = set()
    for info in op_infos()[op]:
        for call in calls_in(info, dtypes):
            if isinstance(call, Skipped):
                tally.skipped.append(call)
            elif not has_rule(call):
                tally.missing.setdefault(str(call.target), op)
            elif call.key not in seen:
                seen.add(call.key)
                yield call


def some_calls(
    names: tuple[str, ...], tally: Tally, chooser: random.Random, count: int
) -> Iterator[tuple[str, AtenCall]]:
    """A random call of each of `count` random samples; only the samples chosen are traced.

    Yields the op's name and the call. A sample without a call that has a rule yields nothing.
    """
    ops = {name: infos for name, infos in op_infos().items() if not names or name in names}
    for _ in range(count):
        name = chooser.choice(sorted(ops))
        info = chooser.choice(ops[name])
        if (sample := a_sample(info, chooser)) is None:
            continue
        found = calls_of_sample(info, sample)
        tally.skipped += [call for call in found if isinstance(call, Skipped)]
        calls = [call for call in found if isinstance(call, AtenCall)]
        tally.missing |= {str(call.target): name for call in calls if not has_rule(call)}
        if known := [call for call in calls if has_rule(call)]:
            yield name, chooser.choice(known)
