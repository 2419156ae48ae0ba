"""From a checkpoint to a directory that `from_pretrained` loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shardlang.runtime.checkpoint.whole_model import whole_model
from shardlang.runtime.save import check_room, write
from shardlang.runtime.weight_files import LARGEST_FILE_BYTES
from shardlang.training.hugging_face import HUGGING_FACE, Directory, directory_from, skeleton


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        step: the steps that were taken before the checkpoint.
        model: the class that loads it; empty where it is not one of transformers.
        tensors: how many the model has.
    """

    folder: Path
    step: int
    model: str
    tensors: int
    size_bytes: int
    files: tuple[str, ...]


def export(checkpoint: Path, folder: Path, file_bytes: int = LARGEST_FILE_BYTES) -> Exported:
    """Write the model of a checkpoint, one tensor at a time, in files of a bounded size.

    The folder's old weights, if they are of the same model, stay until the new ones are complete.

    Raises:
        RunError: SH0661 and SH0608, there is no such checkpoint; SH0609, the folder cannot be
            written, or belongs to another model.
        CaptureError: SH0352, transformers is missing.
    """
    model = whole_model(checkpoint)
    stated = model.manifest.about.get(HUGGING_FACE)
    directory = directory_from(stated) if isinstance(stated, dict) else Directory()
    directory.check_apart(folder)
    format = replace(directory.format(skeleton(directory)), file_bytes=file_bytes)
    check_room(folder, model.tensors, format)
    files = write(model.tensors, model.read, folder, format)
    return Exported(
        folder, model.manifest.step, directory.model, len(model.tensors),
        sum(one.size_bytes for one in model.tensors), tuple(path.name for path in files),
    )  # fmt: skip
