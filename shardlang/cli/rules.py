"""`shardlang rules`: which ops have a rule, what is proven of it, and what DTensor has beside."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click
import torch

from shardlang.cli.common import Context, common_options


@click.command("rules")
@click.argument("name", required=False)
@common_options
def command(context: Context, name: str | None) -> None:
    """List the op rules with what is proven of them; with NAME, those whose name contains it."""
    found = [row for row in rows() if name is None or name in row.op]
    coverage = dtensor_coverage()
    if context.is_json:
        context.print_document(
            {"rules": [asdict(row) for row in found], "dtensor": asdict(coverage)}
        )
        return
    for row in found:
        context.show(f"{row.op:44} {row.status:28} {row.rule}".rstrip())
    context.show(summary(found, coverage))


@dataclass(frozen=True, slots=True)
class Row:
    """An op with a rule, and what the proof has shown of it."""

    op: str
    rule: str = ""
    samples: int = 0
    splits: int = 0
    failures: int = 0

    @property
    def status(self) -> str:
        """What the proof says of the rule."""
        if self.failures:
            return f"{self.failures} failures"
        return f"{self.splits} splits proven" if self.splits else "not proven"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of DTensor's overloads have a rule; `missing` says why others have none."""

    torch: str
    overloads: int
    covered: int
    percent: float
    proven: int
    percent_proven: float
    missing: dict[str, str]


def rows() -> list[Row]:
    """One record for each op with a rule, sorted by name."""
    from shardlang.proof.rules.table import read_table
    from shardlang.rules import RULES
    from shardlang.rules.schema import full_name

    table = read_table()
    found = []
    for target, declared in RULES.items():
        name = full_name(target)
        proven = table.get(name)
        stated = declared.spec if isinstance(declared.spec, str) else ""
        if proven is None:
            found.append(Row(name, stated))
        else:
            rule = proven.rule or stated
            found.append(Row(name, rule, proven.samples, proven.assignments, proven.failures))
    return sorted(found, key=lambda row: row.op)


def dtensor_coverage() -> Coverage:
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
    percent_proven = round(100 * proven / len(theirs), 1) if theirs else 100.0
    version = str(torch.__version__)
    return Coverage(version, len(theirs), covered, percent, proven, percent_proven, missing)


def summary(found: list[Row], coverage: Coverage) -> str:
    """The counts, and what DTensor has beside."""
    proven = sum(row.splits > 0 and not row.failures for row in found)
    lines = [
        f"{len(found)} rules, {proven} of them proven on samples",
        f"{coverage.percent}% of the {coverage.overloads} forward overloads that DTensor of torch"
        f" {coverage.torch} has a rule for have one here, {coverage.percent_proven}% one that is"
        " proven on samples",
    ]
    if coverage.missing:
        lines.append("without a rule here:")
    lines += [f"  {name}: {why}" for name, why in coverage.missing.items()]
    return "\n" + "\n".join(lines)
