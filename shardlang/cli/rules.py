"""`shardlang rules`: which ops have a rule, what is proven of it, and what DTensor has beside."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
import torch

from shardlang.cli.common import Context, common_options


@click.command("rules")
@click.argument("name", required=False)
@common_options
def command(context: Context, name: str | None) -> None:
    """List the op rules with what is proven of them; with NAME, those whose name contains it."""
    found = [row for row in rows() if name is None or name in row["op"]]
    coverage = dtensor_coverage()
    if context.is_json:
        context.print_document({"rules": found, "dtensor": coverage})
        return
    for row in found:
        context.show(f"{row['op']:44} {status(row):28} {row['rule']}".rstrip())
    context.show(summary(found, coverage))


def rows() -> list[dict[str, Any]]:
    """One record for each op with a rule, sorted by name."""
    from shardlang.proof.rules.table import read_table
    from shardlang.rules import RULES
    from shardlang.rules.schema import full_name

    table = read_table()
    found = []
    for target, declared in RULES.items():
        name = full_name(target)
        proven = table.get(name)
        record: dict[str, Any] = {"op": name, "rule": "", "samples": 0, "splits": 0, "failures": 0}
        if proven is not None:
            record |= {"samples": proven.samples, "splits": proven.assignments}
            record |= {"failures": proven.failures, "rule": proven.rule}
        if not record["rule"] and isinstance(declared.spec, str):
            record["rule"] = declared.spec
        found.append(record)
    return sorted(found, key=lambda record: str(record["op"]))


def status(row: dict[str, Any]) -> str:
    """What the proof says of one rule."""
    if row["failures"]:
        return f"{row['failures']} failures"
    if not row["splits"]:
        return "not proven"
    return f"{row['splits']} splits proven"


def dtensor_coverage() -> dict[str, Any]:
    """How many of DTensor's functional forward overloads have a rule, and why others have none."""
    from shardlang.ir.compat import dtensor_overloads
    from shardlang.proof.rules.table import read_table
    from shardlang.rules import RULES
    from shardlang.rules.reasons import REASONS

    theirs, table = dtensor_overloads(), read_table()
    missing = {str(op): REASONS.get(str(op), "no reason known") for op in theirs if op not in RULES}
    covered = len(theirs) - len(missing)
    shown = [table[str(op)] for op in theirs if str(op) in table and str(op) not in missing]
    proven = sum(one.assignments > 0 and not one.failures for one in shown)
    percent = round(100 * covered / len(theirs), 1) if theirs else 100.0
    return {
        "torch": torch.__version__,
        "overloads": len(theirs),
        "covered": covered,
        "percent": percent,
        "proven": proven,
        "percent_proven": round(100 * proven / len(theirs), 1) if theirs else 100.0,
        "missing": missing,
    }


def summary(found: list[dict[str, Any]], coverage: dict[str, Any]) -> str:
    """The counts, and what DTensor has beside."""
    counts = Counter("proven" if row["splits"] and not row["failures"] else "" for row in found)
    lines = [
        f"{len(found)} rules, {counts['proven']} of them proven on samples",
        f"{coverage['percent']}% of the {coverage['overloads']} forward overloads that DTensor of "
        f"torch {coverage['torch']} has a rule for have one here, {coverage['percent_proven']}% one"
        " that is proven on samples",
    ]
    if coverage["missing"]:
        lines.append("without a rule here:")
    lines += [f"  {name}: {why}" for name, why in coverage["missing"].items()]
    return "\n" + "\n".join(lines)
