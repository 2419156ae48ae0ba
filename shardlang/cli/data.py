"""`shardlang data`: files of tokens, made and shown."""

from __future__ import annotations

from pathlib import Path

import click

from shardlang.cli.common import Context, common_options


@click.group("data")
def command() -> None:
    """Make a file of tokens, or show what one holds."""


@command.command("prepare")
@click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IN..."
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT", help="Where to write the tokens, such as corpus.bin.",
)  # fmt: skip
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="PATH",
    help="A model's folder, or a tokenizer.json; without one, tokens are bytes.",
)  # fmt: skip
@click.option(
    "--field", default="text", show_default=True, metavar="NAME",
    help="What holds the text, or ids, in lines of JSON and in tables.",
)  # fmt: skip
@click.option(
    "--end", metavar="TOKEN",
    help="The token behind each document; a number where no tokenizer names tokens.",
)  # fmt: skip
@click.option("--no-end", is_flag=True, help="Put no token behind documents.")
@click.option(
    "--vocabulary", type=click.IntRange(min=1), metavar="N",
    help="The inputs hold ids below N, and no texts.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@common_options
def prepare(
    context: Context,
    inputs: tuple[Path, ...],
    output: Path,
    tokenizer: Path | None,
    field: str,
    end: str | None,
    no_end: bool,
    vocabulary: int | None,
    force: bool,
) -> None:
    """Turn texts (IN...: text, .jsonl, .parquet, .arrow, each also .gz) into tokens, OUT."""
    from shardlang.training.encoders import encoder_of, plain_encoder
    from shardlang.training.prepare import prepare as work

    context.place = str(inputs[0])
    _check(output, force, tokenizer, vocabulary)
    if end is not None and no_end:
        raise click.BadParameter("contradicts --no-end", param_hint="'--end'")
    if tokenizer is not None:
        encoder = encoder_of(tokenizer, end, not no_end)
    else:
        encoder = plain_encoder(vocabulary, end, not no_end)
    header = work(inputs, output, encoder, field)
    context.say(f"wrote {header.tokens:,} tokens of {header.documents:,} documents in `{output}`")
    context.finish({"output": str(output), "tokens": header.tokens, "documents": header.documents})


def _check(output: Path, force: bool, tokenizer: Path | None, vocabulary: int | None) -> None:
    if output.suffix != ".bin":
        message = f"{output} is no name of a file of tokens; write {output.with_suffix('.bin')}"
        raise click.BadParameter(message, param_hint="'-o'")
    if output.exists() and not force:
        raise click.BadParameter(f"{output} exists; add --force", param_hint="'-o'")
    if tokenizer is not None and vocabulary is not None:
        message = "is for ids that are there already, without --tokenizer"
        raise click.BadParameter(message, param_hint="'--vocabulary'")


@command.command("show")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE")
@common_options
def show(context: Context, path: Path) -> None:
    """Say what FILE holds: its tokens, its documents, and what made them."""
    from shardlang.runtime.data import open_tokens

    context.place = str(path)
    tokens = open_tokens(path)
    found: dict[str, object] = {
        "file": str(path),
        "tokens": len(tokens),
        "type": tokens.ids.dtype.name,
        "documents": int(tokens.starts.size),
        "largest": tokens.largest,
        "tokenizer": tokens.tokenizer or None,
        "fingerprint": tokens.fingerprint,
    }
    for name, value in found.items():
        if value is not None:
            context.show(f"{name:12} {f'{value:,}' if isinstance(value, int) else value}")
    context.finish(found)
