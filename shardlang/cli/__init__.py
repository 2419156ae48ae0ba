"""The command line: one file per command, imported when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from shardlang.ir.collection import rarely_collected

COMMANDS = {
    "fmt": "Print specs in canonical form.",
    "check": "Report everything that is wrong with a spec.",
    "plan": "Show layouts, collectives, memory and time.",
    "schedule": "Show what the ranks of a pipeline do when.",
    "graph": "Draw the traced or rewritten graph.",
    "explain": "Explain a diagnostic code, or a tensor's layout.",
    "verify": "Prove on one CPU that the sharded program computes the same.",
    "run": "Run the program on the devices of the mesh.",
    "runs": "List the runs in a folder, and draw their curves.",
    "data": "Make files of tokens, and show them.",
    "export": "Write a checkpoint as a directory that transformers loads.",
    "rules": "List the sharding rules of ops.",
    "init": "Write a first spec for a model.",
}
"""Every command with its summary; `shardlang.cli.<name>` holds it as `command`."""

INTERRUPTED = 130
WRONG_USE = 2


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands whose modules exist."""
        return [name for name in COMMANDS if _exists(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS or not _exists(cmd_name):
            return None
        module = importlib.import_module(f"shardlang.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look a command up; a wrong name gives the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as fault:
            from shardlang.grammar.patterns import nearest

            near = nearest(args[0], self.list_commands(ctx))
            if not near:
                raise
            raise click.UsageError(f"{fault.message} Did you mean '{near[0]}'?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


def _exists(name: str) -> bool:
    return Path(__file__).with_name(f"{name}.py").exists()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _option, asked: _print_version(ctx) if asked else None,
    help="Print the version and exit.",
)
def cli() -> None:
    """Shard a PyTorch model as a short text file says."""


def _print_version(ctx: click.Context) -> None:
    from importlib import metadata

    try:
        version = metadata.version("shardlang")
    except metadata.PackageNotFoundError:
        version = "0 (not installed)"
    click.echo(f"shardlang {version}")
    ctx.exit()


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exits with 0 when all is clean, 1 on findings, 2 on wrong usage or an internal error, 130 on
    Ctrl-C.
    """
    with rarely_collected():
        status = execute(args)
    sys.exit(status)


def execute(args: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        status = cli.main(args, prog_name="shardlang", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as fault:
        fault.show()
        return WRONG_USE
    except (click.Abort, KeyboardInterrupt) as fault:
        if isinstance(fault.__cause__, EOFError):  # click takes the end of any file for Ctrl-D
            _report_internal(fault.__cause__)
            return WRONG_USE
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as fault:
        _report_internal(fault)
        return WRONG_USE


def _report_internal(fault: Exception) -> None:
    """Say that the fault is ours, and where it is."""
    frames = traceback.extract_tb(fault.__traceback__)
    click.echo(f"internal error: {type(fault).__name__}: {fault}", err=True)
    for frame in frames[-5:]:
        click.echo(f"  at {frame.filename}:{frame.lineno} in {frame.name}", err=True)
    click.echo("please report this with the spec and the model that lead to it", err=True)
