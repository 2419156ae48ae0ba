"""`shardlang export`: a checkpoint as a directory that `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path

import click

from shardlang.cli.common import Context, common_options


@click.command("export")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@common_options
def command(context: Context, checkpoint: Path, folder: Path) -> None:
    """Write the model of CHECKPOINT into DIR, which `from_pretrained` loads.

    CHECKPOINT is the folder of a step, or a run's, whose newest checkpoint is taken.
    """
    from shardlang.training.export import export

    context.place = str(checkpoint)
    done = export(checkpoint, folder)
    if context.is_json:
        context.print_document(
            {
                "exported": str(folder), "step": done.step, "model": done.model or None,
                "tensors": done.tensors, "bytes": done.size_bytes, "files": list(done.files),
            }
        )  # fmt: skip
        return
    loads = f"`{done.model}.from_pretrained({str(folder)!r})` loads it"
    last = loads if done.model else "it has no configuration, since its class is one of your own"
    context.show(
        f"wrote the {done.tensors} tensors of step {done.step} ({done.size_bytes:,} bytes) into"
        f" `{folder}`; {last}"
    )
