"""What proving the written specs gave: kept as JSON, shown as a section of the zoo's page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from tests.model_zoo.init import BY_EXPERT, MESHES, Written, meshes_of
from tests.model_zoo.zoo import ZOO

RESULTS = Path(__file__).parent / "init_results.json"

Results = dict[str, dict[str, Written]]
"""What was written, by case and mesh."""

HEAD = """
## Specs that `init` writes

`shardlang init CONFIG --mesh …` wrote a spec for every model, and `shardlang verify` proved it with
no edit in between. A cell is the worst relative error. *split* is the part of the bytes of all
matrices (the weights of products; of convolutions too where they are the most) that the spec for
`dp=2,tp=2` splits over `tp`; *sent* is what the busiest device sends in a step, and *by hand* the
same with the parameters laid out as in the table above, which leaves more of them whole in some
models. Written by `python -m tests.model_zoo --init --table`.
"""


def load_written() -> Results:
    """The results so far."""
    if not RESULTS.exists():
        return {}
    found = json.loads(RESULTS.read_text())
    return {
        case: {mesh: Written(**fields) for mesh, fields in meshes.items()}
        for case, meshes in found.items()
    }


def save_written(results: Mapping[str, Mapping[str, Written]]) -> None:
    """Keep the results, for a table from several runs."""
    found = {
        case: {mesh: dataclasses.asdict(one) for mesh, one in meshes.items()}
        for case, meshes in results.items()
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def section() -> str:
    """The section of the page."""
    results = load_written()
    meshes = (*MESHES, BY_EXPERT)
    lines = [HEAD, f"| model | {' | '.join(meshes)} | split | sent | by hand |"]
    lines.append("|---" * (len(meshes) + 4) + "|")
    notes: dict[str, None] = {}
    for case in ZOO:
        found = results.get(case.name, {})
        cells = [_cell(found.get(mesh), mesh in meshes_of(case)) for mesh in meshes]
        lines.append(f"| {case.name} | {' | '.join((*cells, *_sizes(found.get(MESHES[0]))))} |")
        notes |= {f"- {case.name}: {one.finding}": None for one in found.values() if not one.ok}
    return "\n".join(lines) + "\n" + ("\n" + "\n".join(notes) + "\n" if notes else "")


def _cell(one: Written | None, wanted: bool) -> str:
    if one is None:
        return "not run" if wanted else ""
    return f"{one.error:.0e}" if one.ok else one.code or "wrong"


def _sizes(one: Written | None) -> tuple[str, str, str]:
    """How much is split, and the bytes sent."""
    if one is None or one.percent is None:
        return "", "", ""
    return f"{one.percent:.0f}%", f"{one.sent / 1024:.1f} KiB", f"{one.by_hand / 1024:.1f} KiB"
