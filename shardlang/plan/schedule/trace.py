"""The timeline of a pipeline as a trace that Perfetto and Chrome open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from shardlang.ir.pipeline.action import Work
from shardlang.plan.schedule.lanes import Lanes

_KINDS = {
    Work.FORWARD: "forward",
    Work.BACKWARD: "backward",
    Work.INPUT: "gradients of inputs",
    Work.WEIGHT: "gradients of weights",
}
_FLOPS_PER_US = 1e6


def trace_text(lanes: Sequence[Lanes]) -> str:
    """One process for what was predicted and one for what was measured, a thread for each rank.

    Where a time is no number of seconds, a microsecond stands for a million operations. The format
    is Chrome's trace events.
    """
    events = [event for number, one in enumerate(lanes) for event in _events(number, one)]
    document = {"traceEvents": events, "displayTimeUnit": "ms"}
    return json.dumps(document, indent=1) + "\n"


def _events(number: int, one: Lanes) -> Iterator[dict[str, object]]:
    named = one.title if one.unit == "s" else f"{one.title}, 1 us for a million flops"
    yield {"name": "process_name", "ph": "M", "pid": number, "args": {"name": named}}
    scale = 1e6 if one.unit == "s" else 1 / _FLOPS_PER_US
    for rank, spells in enumerate(one.ranks):
        thread = {"pid": number, "tid": rank}
        yield {"name": "thread_name", "ph": "M", **thread, "args": {"name": f"rank {rank}"}}
        for spell in spells:
            action = spell.action
            yield {
                "name": str(action),
                "cat": _KINDS[action.work],
                "ph": "X",
                **thread,
                "ts": spell.begin * scale,
                "dur": (spell.end - spell.begin) * scale,
                "args": {"stage": action.stage, "microbatch": action.microbatch},
            }
