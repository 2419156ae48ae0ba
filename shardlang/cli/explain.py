"""`shardlang explain`: what a diagnostic code means."""

from __future__ import annotations

import textwrap

import click

from shardlang.cli.common import Context, common_options
from shardlang.grammar.codes import CODES
from shardlang.patterns import nearest


@click.command("explain")
@click.argument("subject", metavar="CODE")
@common_options
def command(context: Context, subject: str) -> None:
    """Explain the diagnostic CODE, such as SH0203."""
    code = subject.upper()
    if code not in CODES:
        near = nearest(code, CODES)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise click.UsageError(f"there is no diagnostic {subject}{hint}")
    title, explanation = CODES[code]
    if context.is_json:
        context.print_document({"code": code, "title": title, "explanation": explanation})
        return
    context.show(f"{code}: {title}\n\n{textwrap.fill(explanation, 80)}")
