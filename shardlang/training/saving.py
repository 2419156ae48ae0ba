"""The checkpoints of a run: when they are saved, what they go on from, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardlang.compiler.driver import Compiled
from shardlang.runtime.checkpoint.checkpoints import Checkpoints
from shardlang.runtime.checkpoint.finding import committed
from shardlang.runtime.checkpoint.folders import folder_at
from shardlang.runtime.checkpoint.manifest import Manifest
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.run_folder import SPEC
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.training.about import about_of
from shardlang.training.changes import STAGES, differences
from shardlang.training.staged import StagedTrainee

FOLDER = "checkpoints"
"""Within the folder of a run."""

MOST_IN_A_ROW = 10
"""After so many steps that are not finite one after the other, the run ends whatever is stated."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a run saves, and what it does after a step that is not finite.

    Attributes:
        every: so many steps; None for at the end alone.
        keep: how many of the last checkpoints stay; None for all.
        keep_every: those whose step it divides stay too.
        on_nan: `stop`, `skip` or `rollback`.
    """

    every: int | None = None
    keep: int | None = None
    keep_every: int | None = None
    on_nan: str = "stop"


def policy_of(compiled: Compiled) -> Policy:
    """What the spec states."""
    stated = compiled.spec.checkpoint
    if stated is None:
        return Policy()
    return Policy(stated.every, stated.keep, stated.keep_every, stated.on_nan)


class Saving:
    """Saves a run as its spec says, and resumes it."""

    def __init__(
        self,
        compiled: Compiled,
        trainer: Trainer,
        out: Path,
        say: Callable[[str], object],
        timeout_s: float,
    ) -> None:
        """Collective.

        Args:
            out: the folder of the run.
            say: takes what a person should know, on rank 0.
            timeout_s: how long a rank waits for the others.
        """
        self._policy = policy_of(compiled)
        self._about, self._trainer, self._say = about_of(compiled), trainer, say
        if isinstance(trainer.trainee, StagedTrainee):
            self._about[STAGES] = trainer.trainee.fingerprints()
        self._out, self._in_a_row = out, 0
        self._rolled_to: int | None = None
        self.checkpoints = Checkpoints(
            out / FOLDER,
            keep=self._policy.keep,
            keep_every=self._policy.keep_every,
            about=self._about,
            say=say,
            timeout_s=timeout_s,
        )
        trainer.goes_on = self.goes_on
        trainer.after_step.append(self.after_step)

    def begin(self, resume: bool) -> int:
        """Go on from the last checkpoint, or from the beginning; the steps before. Collective.

        A node that begins again by itself says to resume, and one that a person has started anew,
        by the command that began the run, does not: all follow the first.

        Raises:
            RunError: SH0664, there are checkpoints and nothing says to resume; SH0665, they are
                those of another model or optimizer; SH0661, none of them is whole.
        """
        if not self.checkpoints.wanted(resume):
            self._refuse_old()
            return 0
        manifest = self.checkpoints.manifest()
        if manifest is None and not self.checkpoints.any():
            self._say(f"`{self._out}` holds no checkpoint: the run begins anew")
            return 0
        if manifest is not None:
            self._compare(manifest)
        step = self.checkpoints.load(self._trainer.state(), found=manifest)
        self._say(f"goes on after step {step}")
        return step or 0

    def _refuse_old(self) -> None:
        if self.checkpoints.any():
            raise RunError(
                "SH0664",
                f"`{self._out}` holds the checkpoints of a run",
                help="go on from the last one with `--resume`, or choose another folder: nothing is"
                " overwritten",
            )

    def _compare(self, manifest: Manifest) -> None:
        """Say what differs from the run that saved the checkpoint, or refuse it."""
        refused, said = differences(manifest.about, self._about)
        if refused:
            raise RunError(
                "SH0665",
                f"the checkpoint of step {manifest.step} is another run's: "
                f"{'; '.join(change.words for change in refused)}",
                help=f"resume with the spec as it was, which is `{self._out / SPEC}` (and `spec` in"
                " the checkpoint's `manifest.json`), or begin a new run in another folder",
                about=refused[0].key,
            )
        for line in said:
            self._say(f"since the checkpoint, {line}")

    def after_step(self, trainer: Trainer, record: Record) -> None:
        """Save, if it is time to. Collective."""
        if record.not_finite:
            return
        self._in_a_row = 0
        if self._policy.every and trainer.step_number % self._policy.every == 0:
            self.checkpoints.save(trainer.step_number, self._trainer.state())

    def goes_on(self, record: Record) -> bool:
        """Whether a run goes on after a step that is not finite. Collective."""
        self._in_a_row += 1
        if self._policy.on_nan == "stop" or self._in_a_row > MOST_IN_A_ROW:
            return False
        return self._policy.on_nan == "skip" or self._roll_back(record)

    def _roll_back(self, record: Record) -> bool:
        """Load the last checkpoint but for the place in the data; whether there is a new one."""
        manifest = self.checkpoints.manifest()
        if manifest is None or manifest.step == self._rolled_to:
            return False
        state = {name: part for name, part in self._trainer.state().items() if name != "data"}
        self._rolled_to = self.checkpoints.load(state, found=manifest)
        wrong = " and ".join(f"{name} is {value}" for name, value in record.not_finite.items())
        self._say(f"{wrong} in step {record.step}: back to step {self._rolled_to}")
        return True

    def finish(self, save: bool) -> int | None:
        """Wait for what is being saved, and save the end; the last checkpoint's step. Collective.

        Args:
            save: whether the state is one to go on from.
        """
        step = self._trainer.step_number
        self.checkpoints.wait()
        if save and step and step != self.checkpoints.last:
            self.checkpoints.save(step, self._trainer.state())
        self.checkpoints.wait()
        return self.checkpoints.last


def last_in(out: Path) -> int | None:
    """The step of the last checkpoint in the folder of a run, which no process writes any more."""
    steps = committed(folder_at(out / FOLDER))
    return steps[-1] if steps else None


def note_of(last: int | None) -> str:
    """What to say of a run that ended by a fault."""
    if last is None:
        return "no checkpoint was written"
    return f"the last checkpoint is that of step {last}: go on from there with `--resume`"
