"""The tokens of a text: those of the model's own tokenizer, or the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardlang.capture import HfSource, ModelSource
from shardlang.capture.hf import import_transformers
from shardlang.capture.hf_types import HfTokenizer
from shardlang.runtime.data import BYTES, Encode
from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import safetensors_module
from shardlang.training.encoders import encoder_of

TOKENS = "tokens"
"""The key of a saved file's metadata that says what the model was trained on."""

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What turns a text into the ids that a model knows; None for bytes."""

    own: HfTokenizer | None = None

    @property
    def kind(self) -> str:
        """`tokenizer` or `bytes`."""
        return "tokenizer" if self.own is not None else "bytes"

    @property
    def encode(self) -> Encode | None:
        """The ids of a text, without special tokens; None for bytes."""
        own = self.own
        if own is None:
            return None
        return lambda text: own(text, add_special_tokens=False, verbose=False)["input_ids"]


def tokenizer_of(source: ModelSource, vocabulary: int) -> Tokenizer:
    """The tokenizer in the model's folder, read from there alone; else the bytes.

    Raises:
        RunError: SH0605, the tokenizer cannot be read, or weights that were trained on other tokens
            than bytes come without one.
    """
    if not isinstance(source, HfSource):
        return Tokenizer()
    own = own_tokenizer(source)
    if own is not None:
        return own
    folder = _folder(source)
    if source.checkpoint is None or vocabulary == BYTES or _trained_on_bytes(source.checkpoint):
        return Tokenizer()
    raise RunError(
        "SH0605",
        f"`{folder}` holds weights but no tokenizer, so the tokens that they know are unknown",
        help="put the files of its tokenizer into the folder, or train through the Python"
        " interface",
    )


def own_tokenizer(source: ModelSource) -> Tokenizer | None:
    """The tokenizer in the model's folder; None where there is none.

    Raises:
        RunError: SH0605, it cannot be read.
    """
    folder = _with_tokenizer(source)
    return None if folder is None else Tokenizer(_read(folder))


def fingerprint_for(source: ModelSource) -> str:
    """The fingerprint of the tokenizer in the model's folder; empty where there is none.

    Raises:
        RunError: SH0651, it cannot be read.
    """
    folder = _with_tokenizer(source)
    return "" if folder is None else encoder_of(folder, ends=False).fingerprint


def _with_tokenizer(source: ModelSource) -> Path | None:
    """The model's folder, if it holds a tokenizer."""
    if not isinstance(source, HfSource):
        return None
    folder = _folder(source)
    beside = source.path.is_dir() or source.path.name == "config.json"
    return folder if beside and any((folder / name).is_file() for name in _FILES) else None


def _folder(source: HfSource) -> Path:
    return source.path if source.path.is_dir() else source.path.parent


def _read(folder: Path) -> HfTokenizer:
    kinds = import_transformers().AutoTokenizer
    try:
        found: HfTokenizer = kinds.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise RunError(
            "SH0605",
            f"the tokenizer in `{folder}` cannot be read: {str(error).splitlines()[0]}",
            help="save it there anew with its `save_pretrained`",
        ) from error
    return found


def _trained_on_bytes(folder: Path) -> bool:
    """Whether the weights say that they were trained on the bytes of a text."""
    path = next(iter(sorted(folder.glob("*.safetensors"))))
    with safetensors_module().safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(TOKENS) == "bytes"
