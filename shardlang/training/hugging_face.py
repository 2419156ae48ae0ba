"""A Hugging Face directory but for its weights: the configurations, and the tokenizer's files."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from shardlang.capture import HfSource, ModelSource
from shardlang.capture.hf import import_transformers
from shardlang.capture.hf_names import stored_as
from shardlang.capture.hf_types import Generating, Pretrained
from shardlang.runtime.errors import RunError
from shardlang.runtime.save import Format

HUGGING_FACE = "hugging_face"
"""What a manifest calls the directory that belongs to its model."""

CONFIG = "config.json"
GENERATION = "generation_config.json"

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.spm", "*.tiktoken", "chat_template*", "*processor_config.json",
)  # fmt: skip
"""What the tokenizers and processors of transformers write."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What a directory holds beside the weights, so that `from_pretrained` loads it.

    Attributes:
        model: the class of the model; empty for one that is not of transformers.
        settings: the configurations, by their files.
        origin: the folder whose tokenizer's files are carried over; empty for none.
    """

    model: str = ""
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    origin: str = ""

    def document(self) -> dict[str, object]:
        """All of it as JSON."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write all of it into a folder; a tokenizer that is gone is warned of."""
        for name, settings in self.settings.items():
            text = json.dumps(settings, indent=2, sort_keys=True)
            (folder / name).write_text(f"{text}\n")
        for path in self._tokenizer():
            shutil.copyfile(path, folder / path.name)

    def _tokenizer(self) -> Iterator[Path]:
        origin = Path(self.origin)
        if self.origin and not origin.is_dir():
            text = f"`{origin}` is gone, and the tokenizer with it: copy its files yourself"
            warnings.warn(text, stacklevel=2)
        elif self.origin:
            found = {path for each in _TOKENIZER_FILES for path in origin.glob(each)}
            yield from sorted(path for path in found if path.is_file())

    def format(self, module: nn.Module, metadata: Mapping[str, str] | None = None) -> Format:
        """How weights of this model are written beside all of it."""
        return Format(stored_as(module), self.write, self.check, metadata or {})

    def check_apart(self, folder: Path) -> None:
        """Raise SH0609 if a folder is the one that the model came from."""
        if self.origin and folder.resolve() == Path(self.origin):
            raise RunError(
                "SH0609",
                f"the run began with the model in `{folder}`",
                help="choose another folder, so that both models stay",
            )

    def check(self, folder: Path) -> None:
        """Raise SH0609 if a folder belongs to another model."""
        mine, theirs = self.settings.get(CONFIG, {}), _settings(folder / CONFIG)
        kinds = [found.get("model_type", "") for found in (theirs, mine)]
        if theirs and kinds[0] != kinds[1]:
            raise RunError(
                "SH0609",
                f"`{folder / CONFIG}` is of another model, of type `{kinds[0]}`",
                help="choose another folder, or remove the old model yourself",
            )


def _settings(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def directory_of(source: ModelSource) -> Directory:
    """What belongs beside the weights of a model.

    A configuration that refuses to be written is warned of: the weights matter more.
    """
    module = source.deferred.module
    if not isinstance(module, Pretrained):
        return Directory()
    origin = _origin(source)
    try:
        settings = {CONFIG: _config_of(module)}
        if (generation := _generation_of(module, origin)) is not None:
            settings[GENERATION] = generation
    except Exception as error:
        warnings.warn(f"the configuration is not saved: {error}", stacklevel=2)
        settings = {}
    return Directory(type(module).__name__, settings, origin)


def _origin(source: ModelSource) -> str:
    """The folder that a model is read from; empty for a configuration that stands alone."""
    if not isinstance(source, HfSource):
        return ""
    if source.path.is_dir():
        return str(source.path.resolve())
    return str(source.path.parent.resolve()) if source.path.name == CONFIG else ""


def _config_of(module: Pretrained) -> Mapping[str, object]:
    """The configuration as `save_pretrained` writes it: with the model's class and dtype."""
    config = copy.deepcopy(module.config)
    config.architectures = [type(module).__name__]
    config.dtype = str(module.dtype).removeprefix("torch.")
    return _parsed(config.to_json_string())


def _generation_of(module: nn.Module, origin: str) -> Mapping[str, object] | None:
    """The settings of text generation: the directory's own, or what the configuration implies."""
    found = _settings(Path(origin) / GENERATION) if origin else {}
    if found:
        return found
    if not isinstance(module, Generating):
        return None
    return _parsed(module.generation_config.to_json_string())


def _parsed(text: str) -> Mapping[str, object]:
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def directory_from(document: Mapping[str, object]) -> Directory:
    """The directory of a JSON document."""
    settings = document["settings"]
    assert isinstance(settings, dict)
    return Directory(str(document["model"]), settings, str(document["origin"]))


def skeleton(directory: Directory) -> nn.Module:
    """The model without memory; an empty one where it is not of transformers.

    Raises:
        CaptureError: SH0352, transformers is missing.
    """
    settings = directory.settings.get(CONFIG)
    if not directory.model or settings is None:
        return nn.Module()
    transformers = import_transformers()
    kind = getattr(transformers, directory.model, None)
    if kind is None:
        return nn.Module()
    config = transformers.CONFIG_MAPPING[str(settings["model_type"])].from_dict(dict(settings))
    with torch.device("meta"):
        module = kind(config)
    assert isinstance(module, nn.Module)
    return module
