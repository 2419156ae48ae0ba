"""The checkpoints of a run, in one folder."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from shardlang.runtime.checkpoint.collected import Collected
from shardlang.runtime.checkpoint.drafting import Draft, cannot_write, folder_of, write
from shardlang.runtime.checkpoint.entries import Part, entries_of
from shardlang.runtime.checkpoint.finding import (
    PassedOver,
    committed,
    newest,
    remove_leftovers,
    steps_in,
)
from shardlang.runtime.checkpoint.folders import folder_at
from shardlang.runtime.checkpoint.line import check_kept, check_line, check_step
from shardlang.runtime.checkpoint.loading import load
from shardlang.runtime.checkpoint.manifest import Manifest
from shardlang.runtime.checkpoint.ranks import TIMEOUT_S, Ranks, reason, waiting
from shardlang.runtime.checkpoint.staging import Staging
from shardlang.runtime.errors import RunError


class Checkpoints:
    """Saves the state of a run, finds the last one that is whole, and loads it.

    A state is a dict of modules, optimizers, and whatever else has `state_dict` and
    `load_state_dict`. Every rank makes the same calls in the same order.

        checkpoints = program.checkpoints("run/checkpoints", keep=3)
        state = {"model": model, "optimizer": optimizer}
        first = checkpoints.load(state) or 0
        for step in range(first + 1, 10_001):
            ...
            if step % 500 == 0:
                checkpoints.save(step, state)
        checkpoints.wait()
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int | None = None,
        keep_every: int | None = None,
        about: Mapping[str, object] | None = None,
        say: Callable[[str], object] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Collective.

        Args:
            folder: on a disk that all nodes share, or a URL that `fsspec` knows.
            keep: how many of the last checkpoints stay; None for all.
            keep_every: those whose step it divides stay too.
            about: what the run says of itself in the manifests, as JSON.
            say: takes what a person should know, on rank 0; by default a warning.
            timeout_s: how long a rank waits until the others have written or read their parts.

        Raises:
            RunError: SH0663, there is no such place, or `keep` and `keep_every` say nothing.
        """
        check_kept(keep, keep_every)
        self._folder = folder_at(folder)
        self._keep, self._keep_every = keep, keep_every
        self._about, self._say = dict(about or {}), say or _warn
        self._ranks, self._staging = Ranks(timeout_s), Staging()
        self._saving: threading.Thread | None = None
        self._failure: Exception | None = None
        self._last: int | None = None
        self._said = set[str]()

    @property
    def folder(self) -> str:
        """Where they are."""
        return str(self._folder)

    def save(self, step: int, state: Mapping[str, Part]) -> None:
        """Copy the state, and write it in the background. Collective.

        At most one checkpoint is being written: this waits for the one before. What the state holds
        may change as soon as this returns. Later checkpoints of a run that this one has left, by
        loading an earlier step, are removed once this one is there.

        Raises:
            RunError: SH0662, the checkpoint before could not be written; SH0663, the state holds
                something that cannot be kept, or the folder later steps of another run.
        """
        check_step(step)
        self._said.clear()
        self.wait()
        self._ranks.first(lambda: check_line(step, self._last, steps_in(self._folder)))
        collected = Collected(entries_of(state))
        draft = Draft(
            step,
            collected.trees,
            self._staging.copy(collected.tensors),
            collected.described(),
            self._about,
        )
        self._saving = threading.Thread(target=self._write, args=(draft,), name="checkpoint")
        self._saving.start()

    def _write(self, draft: Draft) -> None:
        try:
            with contextlib.ExitStack() as lock:
                self._ranks.first(lambda: self._lock(lock))
                write(draft, self._folder, self._ranks)
                self._last = draft.step
                self._ranks.first(partial(self._remove_old, draft.step))
        except Exception as error:
            self._failure = error

    def _lock(self, lock: contextlib.ExitStack) -> None:
        try:
            alone = lock.enter_context(self._folder.writing())
        except OSError as error:
            raise cannot_write(self._folder, reason(error)) from error
        if not alone:
            raise RunError(
                "SH0662",
                f"another process is saving to `{self._folder}`",
                help="give each run a folder of its own",
            )

    def _remove_old(self, last: int) -> None:
        """Remove what is kept no longer, now that the checkpoint of a step is there."""
        for step in steps_in(self._folder):
            if step > last:
                self._folder.remove(folder_of(step))
                self._say(f"`{folder_of(step)}` is removed: the run went on from before it")
        for step in committed(self._folder)[: -self._keep] if self._keep is not None else ():
            if self._keep_every is None or step % self._keep_every:
                self._folder.remove(folder_of(step))

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is there.

        Raises:
            RunError: SH0662, it could not be written.
        """
        if self._saving is not None:
            waiting(self._saving.join)
            self._saving = None
        failure, self._failure = self._failure, None
        if isinstance(failure, RunError):
            raise failure
        if isinstance(failure, RuntimeError):
            waiting(partial(_fail, failure))  # a rank that is lost is lost to the run
        if failure is not None:
            raise cannot_write(self._folder, reason(failure)) from failure

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is whole; None if there is none. Collective.

        It says which newer ones are not whole and why, and removes what killed processes have left.
        """
        manifest, _ = self._newest()
        return manifest.step if manifest is not None else None

    def manifest(self, step: int | None = None) -> Manifest | None:
        """What the newest whole checkpoint, or that of a step, says of itself. Collective."""
        return self._newest(step)[0]

    def steps(self) -> list[int]:
        """The steps of the checkpoints whose files are all there. Collective."""
        self.wait()
        return self._ranks.first(lambda: committed(self._folder))

    def wanted(self, here: bool) -> bool:
        """Whether some rank wants something, such as to go on from a checkpoint. Collective."""
        return any(self._ranks.gather(here))

    def any(self) -> bool:
        """Whether the folder holds checkpoints, whole or not. Collective."""
        self.wait()
        return bool(self._ranks.first(lambda: steps_in(self._folder)))

    @property
    def last(self) -> int | None:
        """The step of what was saved or loaded last."""
        return self._last

    def _newest(self, step: int | None = None) -> tuple[Manifest | None, list[PassedOver]]:
        self.wait()
        gone = self._ranks.first(lambda: remove_leftovers(self._folder))
        manifest, passed = newest(self._folder, self._ranks, step)
        if self._ranks.rank == 0:
            for text in map(str, passed):
                if text not in self._said:
                    self._said.add(text)
                    self._say(text)
            for name in gone:
                self._say(f"`{name}` is removed: it was not written to the end")
        return manifest, passed

    def load(
        self, state: Mapping[str, Part], step: int | None = None, *, found: Manifest | None = None
    ) -> int | None:
        """Load the newest whole checkpoint, or that of a step. Collective.

        The state may lie on another mesh, by another spec, or on one process.

        Args:
            found: what `manifest` has just given, in place of a step: whether the checkpoint is
                whole is known then, and its files are not read once more for that.

        Returns:
            Its step; None where there is no checkpoint.

        Raises:
            RunError: SH0661, none of those that are there is whole; SH0608, the state does not fit.
        """
        self._check_there(step)
        manifest, passed = (found, []) if found is not None else self._newest(step)
        if manifest is None:
            if passed:
                self._refuse(passed, step)
            return None
        load(self._folder, manifest, entries_of(state), self._ranks)
        self._last = manifest.step
        return manifest.step

    def _known(self) -> list[int]:
        return self._ranks.first(lambda: steps_in(self._folder))

    def _check_there(self, step: int | None) -> None:
        """Refuse a step of which the folder holds no checkpoint, whole or not."""
        if step is None or step in (known := self._known()):
            return
        raise RunError(
            "SH0661",
            f"there is no checkpoint of step {step} in `{self._folder}`",
            help=f"load one of the steps {known}" if known else "the folder holds no checkpoint",
        )

    def _refuse(self, passed: list[PassedOver], step: int | None) -> None:
        there = f"load one of the steps {self._known()}"
        what = "no checkpoint" if step is None else f"the checkpoint of step {step}"
        lacking = "is whole" if step is None else "is not whole"
        raise RunError(
            "SH0661",
            f"{what} in `{self._folder}` {lacking}: {passed[0].why}",
            help=there
            if step is not None
            else "start anew in another folder, or bring back the files",
            notes=[str(one) for one in passed[1:]],
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the checkpoint that is being written."""
        if error is None:
            self.wait()


def _fail(failure: Exception) -> None:
    raise failure


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)
