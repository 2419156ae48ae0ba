"""When each action of a pipeline begins and ends on this device."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from shardlang.ir.pipeline.action import Action


@dataclass(frozen=True, slots=True)
class Spell:
    """One action, in seconds from the begin of the step."""

    action: Action
    begin_s: float
    end_s: float


class ActionClock:
    """Notes the actions of one step; what they wait for before they can begin is not theirs.

    On a GPU an action is done when the device has done it, which the stream itself notes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._first = self._now()
        self._noted: list[tuple[Action, Mark, Mark]] = []

    @contextmanager
    def __call__(self, action: Action) -> Iterator[None]:
        """Around one action."""
        begin = self._now()
        yield
        self._noted.append((action, begin, self._now()))

    def _now(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def spells(self) -> list[Spell]:
        """The actions in order."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return [Spell(a, self._since(begin), self._since(end)) for a, begin, end in self._noted]

    def _since(self, mark: Mark) -> float:
        if isinstance(mark, torch.cuda.Event):
            assert isinstance(self._first, torch.cuda.Event)
            return float(self._first.elapsed_time(mark)) / 1000
        assert isinstance(self._first, float)
        return mark - self._first

    def write(self, folder: Path, step: int, rank: int) -> Path:
        """Write the file of this device into the folder of the run."""
        actions = [
            {"action": str(x.action), "begin_s": round(x.begin_s, 6), "end_s": round(x.end_s, 6)}
            for x in self.spells()
        ]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"timeline.rank{rank}.json"
        path.write_text(json.dumps({"step": step, "rank": rank, "actions": actions}))
        return path


Mark = float | torch.cuda.Event
