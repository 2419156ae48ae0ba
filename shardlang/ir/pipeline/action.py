"""Actions: what a rank does with one microbatch of one stage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_TEXT = re.compile(r"(\d+)([FBIW])(\d+)")


class Work(str, Enum):
    """What is computed, by the letter that torch's schedules give it."""

    FORWARD = "F"
    BACKWARD = "B"
    """Both gradients: of the stage's inputs and of its parameters."""
    INPUT = "I"
    """The gradients of the stage's inputs alone, which the stage before waits for."""
    WEIGHT = "W"
    """The gradients of the parameters, which nobody waits for."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """One piece of work; its text is that of torch, such as `2F0`."""

    stage: int
    work: Work
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.work.value}{self.microbatch}"

    @staticmethod
    def parse(text: str) -> Action:
        """The action of a text.

        Raises:
            ValueError: it is none.
        """
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"`{text.strip()}` is no action such as `2F0`, with F, B, I or W")
        stage, work, microbatch = found.groups()
        return Action(int(stage), Work(work), int(microbatch))

    @property
    def is_backward(self) -> bool:
        """Whether it gives the gradients of the stage's inputs."""
        return self.work in (Work.BACKWARD, Work.INPUT)
