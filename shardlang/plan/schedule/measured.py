"""The timeline that a run has measured, from the files that its ranks have written.

`run --profile STEP` writes `timeline.rank{r}.json` into the folder of a run, seconds from the
beginning of the step: `{"step": n, "rank": r, "actions": [{"action": "2F0", "begin_s": 0.1,
"end_s": 0.2}, ...]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shardlang.ir.mesh import Mesh
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.plan.schedule.lanes import Lanes, Spell

_FILE = re.compile(r"timeline\.rank(\d+)\.json")


class MeasuredError(ValueError):
    """A folder without the timeline of a pipeline, or with that of another one."""


def measured(folder: Path, mesh: Mesh, axis: str, schedule: PipelineSchedule) -> Lanes:
    """The lanes of the first device of every rank of the pipeline.

    Args:
        mesh: of the run; a device's coordinate along `axis` is its rank in the pipeline.

    Raises:
        MeasuredError: a file is missing or is none, or the actions are not those of the schedule.
    """
    files = {int(found[1]): path for path, found in _files(folder) if found is not None}
    if not files:
        raise MeasuredError(
            f"`{folder}` holds no timeline: `shardlang run SPEC --out FOLDER --profile STEP`"
            " writes one"
        )
    ranks: list[tuple[Spell, ...]] = []
    steps: set[int] = set()
    for rank, wanted in enumerate(schedule.ranks):
        path = _first(files, mesh, axis, rank, folder)
        step, spells = _read(path)
        if {spell.action for spell in spells} != set(wanted):
            raise MeasuredError(f"`{path}` has other actions than rank {rank} of this schedule")
        ranks.append(spells)
        steps.add(step)
    if len(steps) > 1:
        raise MeasuredError(f"the timelines in `{folder}` are of several steps: {sorted(steps)}")
    return Lanes(f"measured in step {steps.pop()}", "s", tuple(ranks))


def _files(folder: Path) -> Iterator[tuple[Path, re.Match[str] | None]]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as fault:
        raise MeasuredError(f"cannot read `{folder}`: {fault.strerror}") from fault
    return ((path, _FILE.fullmatch(path.name)) for path in paths)


def _first(files: Mapping[int, Path], mesh: Mesh, axis: str, rank: int, folder: Path) -> Path:
    """The file of the first device of a rank."""
    for device in range(mesh.devices):
        if mesh.coord(device)[axis] == rank and device in files:
            return files[device]
    raise MeasuredError(f"`{folder}` holds no timeline of rank {rank} of `{axis}`")


def _read(path: Path) -> tuple[int, tuple[Spell, ...]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        spells = tuple(
            Spell(Action.parse(one["action"]), float(one["begin_s"]), float(one["end_s"]))
            for one in found["actions"]
        )
        return int(found["step"]), spells
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise MeasuredError(f"`{path}` is no timeline of a rank: {fault}") from fault
