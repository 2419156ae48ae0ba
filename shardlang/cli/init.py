"""`shardlang init`: a first spec for a model."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardlang.cli.common import Context, common_options

if TYPE_CHECKING:
    from shardlang.init.residual import Residual


@click.command("init")
@click.argument("model", metavar="MODEL")
@click.option("--mesh", required=True, metavar="AXIS=N,...", help="The axes, such as dp=2,tp=4.")
@click.option("-o", "--output", metavar="FILE", help="Where to write the spec; default: stdout.")
@click.option("--task", metavar="TASK", help="What a Hugging Face model is built for.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="NAME=VALUE",
    help="What the model is built with, such as width=64; repeatable.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), help="Rows of a batch.")
@click.option("--seq", type=click.IntRange(min=1), help="Tokens of a sequence.")
@click.option("--store", metavar="AXIS", help="Store every parameter in parts over an axis.")
@click.option(
    "--residual",
    type=click.Choice(["whole", "sequence", "hidden"]),
    default="whole",
    show_default=True,
    help="How the residual stream lies over the model axis.",
)
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME:TYPE[SHAPE]",
    help='An input that the model does not describe, such as "x:f32[8, 64]"; repeatable.',
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@common_options
def command(
    context: Context,
    model: str,
    mesh: str,
    output: str | None,
    task: str | None,
    arguments: tuple[str, ...],
    batch: int | None,
    seq: int | None,
    store: str | None,
    residual: Residual,
    inputs: tuple[str, ...],
    force: bool,
) -> None:
    """Write a spec for MODEL, ready to verify.

    MODEL is a Hugging Face config, a checkpoint folder, or file.py:function. An axis called dp or
    fsdp splits the batch, tp the parameters, ep the experts; over fsdp parameters are also stored
    in parts.
    """
    from shardlang.init import AxesError, Sizes, StreamError, write_spec

    context.spec_path, context.place = output, _model_file(model)
    if output is not None:
        _check_output(Path(output), force)
    words = ["shardlang", "init", model, "--mesh", mesh]
    for name, value in (("task", task), ("batch", batch), ("seq", seq), ("store", store)):
        words += [f"--{name}", str(value)] if value is not None else []
    words += ["--residual", residual] if residual != "whole" else []
    for name, texts in (("arg", arguments), ("input", inputs)):
        words += [word for text in texts for word in (f"--{name}", text)]
    try:
        written = write_spec(
            model, mesh, folder=Path(output).parent if output else Path(), task=task,
            arguments=arguments, sizes=Sizes(batch, seq), store=store, inputs=inputs,
            residual=residual, command=shlex.join(words),
        )  # fmt: skip
    except AxesError as fault:
        raise click.BadParameter(str(fault), param_hint="'--mesh'") from None
    except StreamError as fault:
        raise click.BadParameter(f"{fault}; leave it whole", param_hint="'--residual'") from None
    context.add(written.findings)
    if output is None:
        context.show(written.text.rstrip("\n"))
    else:
        Path(output).write_text(written.text, encoding="utf-8", newline="\n")
    if written.percent is not None:
        context.say(
            f"{written.percent:.1f}% of the bytes of all matrices are split over the model axis"
        )
    if written.whole:
        context.say(f"left whole: {', '.join(written.whole)}")
    for entry in written.unused:
        context.say(f"plan entry not followed: {entry}")
    if output is not None:
        context.say(f"wrote {output}; next: shardlang verify {output}")
    context.finish(
        {"output": output, "percent": written.percent, "whole": list(written.whole),
         "unused": list(written.unused), **({} if output else {"text": written.text})}
    )  # fmt: skip


def _model_file(model: str) -> str:
    """The file that says what the model is."""
    path = Path(model.rpartition(":")[0] if ".py:" in model else model)
    return str(path / "config.json" if path.is_dir() else path)


def _check_output(path: Path, force: bool) -> None:
    """Refuse a file that cannot be written, or that is there already, before any work."""
    if path.is_dir():
        fault = f"{path} is a folder; name a file in it, such as {path / 'model.shard'}"
    elif not path.parent.is_dir():
        fault = f"there is no folder {path.parent}; make it first"
    elif not os.access(path.parent, os.W_OK):
        fault = f"the folder {path.parent} cannot be written to"
    elif path.exists() and not force:
        fault = f"{path} exists; add --force"
    else:
        return
    raise click.BadParameter(fault, param_hint="'-o'")
