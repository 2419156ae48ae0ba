"""Whether the ranks of a pipeline hold the same: those of a stage its program, and both ends of a
link what goes over it.

Every rank shows hashes of its own stages and links alone, in one exchange before the first step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch.distributed as dist

from shardlang.ir.mesh import Axis
from shardlang.runtime.checks import first_difference, same_start
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.stages.routes import Way
from shardlang.runtime.watch import named

Lines = Sequence[str]

_LABEL = "comparison of the stages of all ranks"


class Comparison:
    """Compares what the ranks of a pipeline hold."""

    def __init__(self, axis: Axis, groups: Groups, rank_of: Sequence[int]) -> None:
        """`rank_of`: of every stage, its place along the axis."""
        self._axis, self._groups, self._rank_of = axis, groups, rank_of

    def check(self, stages: Mapping[int, Lines], links: Mapping[Way, Lines]) -> None:
        """Compare. Collective.

        Args:
            stages: the texts of the stages of this rank, by number.
            links: what goes over each way from or to this rank, in order.

        Raises:
            RunError: SH0602, on every rank, with the stage and the ranks that differ.
        """
        if self._groups.mesh.devices == 1:
            return
        mine: dict[str, Lines] = {f"another program of stage {i}": x for i, x in stages.items()}
        mine |= {self._link(way): text for way, text in links.items()}
        prints = {key: hashlib.sha256("\n".join(text).encode()).hexdigest()
                  for key, text in mine.items()}  # fmt: skip
        found = self._gathered(prints)
        for key in sorted({key for one in found for key in one}):
            holders = [rank for rank, one in enumerate(found) if key in one]
            other = next((r for r in holders if found[r][key] != found[holders[0]][key]), None)
            if other is not None:
                self._refuse(key, holders[0], other, mine)

    def _gathered(self, mine: Mapping[str, str]) -> list[Mapping[str, str]]:
        found: list[Mapping[str, str]] = [{}] * self._groups.mesh.devices
        named(_LABEL, dist.all_gather_object, found, mine)
        return found

    def _link(self, way: Way) -> str:
        """What differs where the two ranks of a way do, of which this is one."""
        rows = self._groups.mesh.groups((self._axis,))
        row = next(ranks for ranks in rows if self._groups.rank in ranks)
        return f"other values on the link from rank {row[way[0]]} to rank {row[way[1]]}"

    def _refuse(self, what: str, first: int, other: int, mine: Mapping[str, Lines]) -> None:
        """Say where two ranks differ. Collective."""
        texts: list[Lines] = [[]] * self._groups.mesh.devices
        told = list(mine[what]) if self._groups.rank in (first, other) else []
        named(_LABEL, dist.all_gather_object, texts, told)
        where = first_difference(texts[first], texts[other], first)
        message = f"{self._who(other)} holds {what} than {self._who(first)}: {where}"
        raise RunError("SH0602", message, help=same_start())

    def _who(self, rank: int) -> str:
        place = self._groups.mesh.coord(rank)[self._axis.name]
        stages = [str(stage) for stage, at in enumerate(self._rank_of) if at == place]
        words = "stage" if len(stages) == 1 else "stages"
        return f"rank {rank} ({words} {', '.join(stages)})"
