"""The results of the model zoo: kept as JSON, written as a table for the documentation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from tests.model_zoo.init_table import section
from tests.model_zoo.prove import Outcome
from tests.model_zoo.specs import MESHES
from tests.model_zoo.zoo import ZOO

DOCS = Path(__file__).parent.parent.parent / "docs"
TABLE = DOCS / "model-zoo.md"
RESULTS = Path(__file__).parent / "results.json"

Results = dict[str, dict[str, Outcome]]
"""Outcomes by case and spec."""

HEAD = """# Model zoo

Every model below is unmodified, at a tiny size, in train mode; its program on 4 simulated devices
is compared with the single-device one in float64: loss, outputs and the gradient of every
parameter. A cell is the worst relative error and the seconds that the proof took on one core, the
first one with tracing. *split* is the part of the elements of the attention, MLP and vocabulary
matrices (of convolutions in blocks) that the tensor-parallel specs split over `tp`; tables of
positions and types, routers, and projections outside the layers are left whole.
Written by `python -m tests.model_zoo --table`.
"""


def load_results() -> Results:
    """The results so far."""
    if not RESULTS.exists():
        return {}
    found = json.loads(RESULTS.read_text())
    return {
        case: {spec: Outcome(**fields) for spec, fields in specs.items()}
        for case, specs in found.items()
    }


def save_results(results: Mapping[str, Mapping[str, Outcome]]) -> None:
    """Keep the results, for a table from several runs."""
    found = {
        case: {spec: dataclasses.asdict(outcome) for spec, outcome in specs.items()}
        for case, specs in results.items()
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def write_table(results: Mapping[str, Mapping[str, Outcome]]) -> None:
    """Write the table of all results."""
    lines = [HEAD, f"| kind | model | {' | '.join(MESHES)} | split |", "|---" * 6 + "|"]
    notes: list[str] = []
    for case in ZOO:
        found = results.get(case.name, {})
        cells = [_cell(found.get(name)) for name in MESHES]
        parts = [o.split for o in found.values() if "tp" in o.spec and o.ok]
        split = f"{max(parts):.0%}" if parts else ""
        lines.append(f"| {case.kind} | {case.name} | {' | '.join(cells)} | {split} |")
        notes += _notes(case.name, found)
    text = "\n".join(lines) + "\n"
    if notes:
        text += "\n## Other layouts, and what does not work\n\n" + "\n".join(notes) + "\n"
    TABLE.write_text(text + section())


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run"
    if not outcome.ok:
        return outcome.code or "wrong"
    return f"{outcome.error:.0e}, {outcome.seconds:.1f} s"


def _notes(name: str, found: Mapping[str, Outcome]) -> list[str]:
    """One line for all specs of a case that came out alike."""
    alike: dict[str, list[str]] = {}
    for outcome in found.values():
        if not outcome.ok or outcome.spec not in MESHES:
            alike.setdefault(outcome.finding or _cell(outcome), []).append(outcome.spec)
    return [f"- {name}, {'; '.join(specs)}: {note}" for note, specs in alike.items()]
