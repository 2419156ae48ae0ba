"""`shardlang explain`: what a diagnostic code means, or why a tensor lies as it does."""

from __future__ import annotations

import textwrap

import click

from shardlang.cli.common import Context, spec_options
from shardlang.grammar.codes import CODES
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.grammar.patterns import nearest


@click.command("explain")
@click.argument("subject", metavar="CODE | SPEC")
@click.argument("name", metavar="[NAME]", required=False)
@spec_options
def command(context: Context, subject: str, name: str | None) -> None:
    """Explain the diagnostic CODE, such as SH0203, or NAME in SPEC.

    NAME is a parameter, an input, what a module returns (`model.norm.out`), an output, a module, or
    a collective (the `node` in `plan --json`).
    """
    if name is not None:
        _explain_name(context, subject, name)
    else:
        _explain_code(context, subject)


def _explain_code(context: Context, subject: str) -> None:
    code = subject.upper()
    if code not in CODES:
        if subject.endswith(".shard"):
            raise click.UsageError("name what to explain: a tensor, a module or a collective")
        near = nearest(code, CODES)
        known = f"; they go from {min(CODES)} to {max(CODES)}, and docs/diagnostics.md lists them"
        hint = f"; did you mean {near[0]}?" if near else known
        raise click.UsageError(f"there is no diagnostic {subject}{hint}")
    if context.sets:
        raise click.BadParameter("a code has no spec to change", param_hint="'--set'")
    title, explanation = CODES[code]
    if context.is_json:
        context.print_document({"code": code, "title": title, "explanation": explanation})
        return
    context.show(f"{code}: {title}\n\n{textwrap.fill(explanation, 80)}")


def _explain_name(context: Context, path: str, name: str) -> None:
    from shardlang.explain import UnknownName, explain, render

    compiled = context.compile(context.load_spec(path))
    try:
        found = explain(compiled, name)
    except UnknownName as fault:
        near = join_words(quote(fault.near))
        hint = f"; did you mean {near}?" if near else "; `shardlang plan` lists the names"
        raise click.UsageError(f"{fault}{hint}") from fault
    context.show(render(found))
    context.finish({"name": name, "explanations": [one.to_json() for one in found]})
