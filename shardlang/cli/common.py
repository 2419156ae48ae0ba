"""What commands share: the common options, printing findings, and the one-line documents."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Concatenate, NoReturn, ParamSpec, cast

import click

from shardlang.grammar.cap import most_important
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error, in_order, whole_file
from shardlang.grammar.render import Sources, render_all, to_json, use_color
from shardlang.spec.places import place_of

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled
    from shardlang.passes.pipeline import Pass
    from shardlang.spec import Spec

_P = ParamSpec("_P")

SCHEMA = 1
STYLES = ("full", "concise", "json", "github")


@dataclass(slots=True)
class Context:
    """One run of a command: its common options, the spec, and the findings so far.

    Attributes:
        sets: the text of each `--set`.
        style: how findings are printed; under `json` one document is the whole output.
        findings_are_result: findings go to stdout and notes are shown (`check`).
        place: the file of findings that know no place; None for the spec.
    """

    sets: dict[str, str] = field(default_factory=dict)
    style: str = "full"
    deny_warnings: bool = False
    findings_are_result: bool = False
    spec_path: str | None = None
    spec: Spec | None = None
    place: str | None = None
    set_values: dict[str, object] = field(default_factory=dict)
    findings: list[Diagnostic] = field(default_factory=list)
    sources: Sources = field(default_factory=Sources)

    @property
    def is_json(self) -> bool:
        """Whether the output is one JSON document."""
        return self.style == "json"

    @property
    def speaks(self) -> bool:
        """Whether this process prints: under several ranks, rank 0 alone does."""
        return os.environ.get("RANK", "0") in ("", "0")

    def load_spec(self, path: str) -> Spec:
        """Load the spec; with errors, print them and exit with status 1."""
        from shardlang.spec import load_spec

        self.spec_path = path
        self.set_values = dict(self.sets)
        spec, findings = load_spec(path, self.sets)
        self.add(findings)
        if spec is None:
            self.fail()
        self.spec = spec
        self.set_values = dict(spec.set_values)
        self.stop_on_errors()
        return spec

    def compile(self, spec: Spec, passes: tuple[Pass, ...] | None = None) -> Compiled:
        """Compile the spec, by all passes or a part; with errors, print them and exit with 1."""
        from shardlang.compiler.driver import CompileError, compile_spec
        from shardlang.compiler.stated import check_stated
        from shardlang.passes.pipeline import PIPELINE
        from shardlang.plan.full_gathers import full_gathers

        try:
            compiled = compile_spec(spec, passes=PIPELINE if passes is None else passes)
            if passes is None or passes is PIPELINE:
                check_stated(compiled)
        except CompileError as failure:
            self.add(failure.diagnostics)
            self.fail()
        self.add([*compiled.diagnostics, *full_gathers(compiled)])
        self.stop_on_errors()
        return compiled

    def add(self, findings: Iterable[Diagnostic]) -> None:
        """Keep findings for the end of the command."""
        for finding in findings:
            if self.deny_warnings and finding.severity == "warning":
                finding = replace(finding, severity="error")
            self.findings.append(finding)

    def stop_on_errors(self) -> None:
        """Exit with status 1, findings printed, where there is an error."""
        if any(finding.is_error for finding in self.findings):
            self.fail()

    def fail(self, payload: Mapping[str, object] | None = None) -> NoReturn:
        """Print the findings, as a document under `json`, and exit with status 1."""
        self.finish({**(payload or {}), "ok": False})
        raise click.exceptions.Exit(1)

    def finish(self, payload: Mapping[str, object] | None = None) -> None:
        """End the command: print the findings, and under `json` the document."""
        if not self.speaks:
            return
        if self.is_json:
            self.print_document(payload or {})
        else:
            self._print_findings()

    def print_document(self, payload: Mapping[str, object]) -> None:
        """Print one JSON document on one line; of each key the payload's value stands."""
        shown, more = most_important(self._shown())
        ok = not any(finding.is_error for finding in shown)
        document: dict[str, object] = {"schema": SCHEMA, "spec": self.spec_path}
        document |= {"set": self.set_values, "ok": ok, **payload}
        if shown or not document["ok"]:
            document["diagnostics"] = [to_json(finding) for finding in shown]
        if more:
            document["more_diagnostics"] = more
        click.echo(json.dumps(document, separators=(", ", ": "), allow_nan=False))

    def say(self, text: str) -> None:
        """Print a line of progress on stderr."""
        if self.speaks and not self.is_json:
            click.echo(text, err=True)

    def show(self, text: str) -> None:
        """Print a result on stdout; nothing under `json`."""
        if self.speaks and not self.is_json:
            click.echo(text)

    def _shown(self) -> list[Diagnostic]:
        found = in_order(self.findings)
        if self.findings_are_result:
            return found
        return [finding for finding in found if finding.severity != "note"]

    def _print_findings(self) -> None:
        shown, more = most_important(self._shown())
        stream: IO[str] = sys.stdout if self.findings_are_result else sys.stderr
        if stream.isatty():
            self.sources.width = shutil.get_terminal_size().columns
        if shown:
            text = render_all(shown, self.style, self.sources, use_color(stream))
            text += f"\n… and {more:,} more" if more else ""
            click.echo(text, file=stream, color=use_color(stream))


def diagnostic_of(
    fault: BaseException, path: str | None, spec: Spec | None = None
) -> Diagnostic | None:
    """The finding that an exception with a code carries; None for any other exception.

    A failure of the model's stands at its line, or at the `model` statement of `spec`.
    """
    code = getattr(fault, "code", None)
    if not isinstance(code, str) or not re.fullmatch(r"SH\d{4}", code):
        return None
    if spec is not None and hasattr(fault, "source"):
        from shardlang.compiler.at_model import Failure, at_model

        assert isinstance(fault, Failure)
        return at_model(fault, spec)
    message = str(getattr(fault, "message", fault))
    span = getattr(fault, "span", None) or place_of(getattr(fault, "about", ""), spec)
    notes = list(getattr(fault, "notes", ()))
    place = stated = span if isinstance(span, Span) else whole_file(path or "")
    labels: list[Label] = []
    source = getattr(fault, "source", "")
    if source and isinstance(source, str):
        from shardlang.compiler.at_model import places

        place, found, more = places(source, stated)
        labels = [label for label in found if label.span != stated]
        notes += more
    help = getattr(fault, "help", None) or None
    return error(code, message, place, labels=labels, notes=notes, help=help)


def common_options(function: Callable[Concatenate[Context, _P], None]) -> Callable[..., None]:
    """Give a command the common options; it receives a `Context` as its first argument.

    An exception with a diagnostic code, or with a list of `diagnostics`, becomes findings and exit
    status 1.
    """

    @functools.wraps(function)
    def wrapper(
        output_format: str, as_json: bool, deny: str | None, *args: _P.args, **rest: _P.kwargs
    ) -> None:
        style = "json" if as_json else output_format
        sets = cast(tuple[str, ...], rest.pop("set_", ()))
        context = Context(parse_sets(sets), style, deny_warnings=deny == "warnings")
        try:
            function(context, *args, **rest)
        except Exception as fault:
            several = getattr(fault, "diagnostics", None)
            if isinstance(several, list):
                context.add(several)
                context.fail()
            finding = diagnostic_of(fault, context.place or context.spec_path, context.spec)
            if finding is None:
                raise
            context.add([finding])
            context.fail()

    command: Callable[..., None] = wrapper
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_options(function: Callable[Concatenate[Context, _P], None]) -> Callable[..., None]:
    """Give a command that reads a spec the common options, and `--set`."""
    command: Callable[..., None] = _SET(common_options(function))
    return command


_SET = click.option(
    "--set", "set_", multiple=True, metavar="NAME=VALUE", help="Change a declared let."
)
_OPTIONS = (
    click.option(
        "--output-format",
        type=click.Choice(STYLES),
        default="full",
        show_default=True,
        help="How to print findings.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Short for --output-format json."),
    click.option("--deny", type=click.Choice(["warnings"]), help="Make warnings errors."),
)


def parse_sets(texts: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` texts by name; of one name the last stands."""
    sets: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"'{text}' is not NAME=VALUE", param_hint="'--set'")
        sets[name.strip()] = value.strip()
    return sets


__all__ = [
    "Context", "Label", "common_options", "diagnostic_of", "parse_sets", "spec_options",
]  # fmt: skip
