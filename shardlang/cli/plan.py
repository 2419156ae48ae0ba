"""`shardlang plan`: what a spec costs, before anything runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, spec_options
from shardlang.cli.pictures import check_picture, write_picture
from shardlang.grammar.render import use_color

if TYPE_CHECKING:
    from shardlang.plan import Plan
    from shardlang.spec import Spec


@click.command("plan")
@click.argument("spec_path", metavar="SPEC")
@click.option("--against", metavar="SPEC2", help="Show what differs from the plan of SPEC2.")
@click.option("--memory", metavar="FILE", help="Draw what is alive over the step, as SVG or PNG.")
@spec_options
def command(context: Context, spec_path: str, against: str | None, memory: str | None) -> None:
    """Show layouts, collectives, bytes and memory of SPEC.

    Exits with 1 if an `expect` line of SPEC does not hold.
    """
    if memory is not None:
        check_picture(Path(memory), "--memory")
    from shardlang.plan import plan_document
    from shardlang.plan.expectations import check_expects

    other = _plan(context, against)[1] if against is not None else None
    spec, plan = _plan(context, spec_path)
    document = plan_document(plan)
    context.add(check_expects(spec, plan))
    if other is None:
        _show(context, plan)
    else:
        assert against is not None
        document["against"] = _compare(context, other, plan, against, spec_path)
    if memory is not None:
        _draw(context, plan, spec_path, memory)
        document["picture"] = memory
    if any(finding.is_error for finding in context.findings):
        context.fail(document)
    context.finish(document)


def _plan(context: Context, path: str) -> tuple[Spec, Plan]:
    from shardlang.plan import plan_of

    spec = context.load_spec(path)
    return spec, plan_of(context.compile(spec))


def _show(context: Context, plan: Plan) -> None:
    from shardlang.plan.render import render_plan

    if not context.is_json:
        context.show(render_plan(plan, use_color(sys.stdout), _width()))


def _draw(context: Context, plan: Plan, spec_path: str, path: str) -> None:
    from shardlang.plan.memory_picture import memory_svg

    title = f"{Path(spec_path).name}: live bytes on the fullest device"
    write_picture(Path(path), memory_svg(plan.memory, title))
    context.say(f"wrote {path}")


def _compare(context: Context, before: Plan, after: Plan, old: str, new: str) -> dict[str, object]:
    from shardlang.plan.compare import compare, comparison_document
    from shardlang.plan.render_comparison import render_comparison

    comparison = compare(before, after)
    if not context.is_json:
        color = use_color(sys.stdout)
        context.show(render_comparison(comparison, old, new, color, _width()))
    return comparison_document(comparison, old)


def _width() -> int:
    """Columns of the terminal, within what reads well."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 60), 120)
