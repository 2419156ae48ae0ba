"""What turns texts into ids for a file of tokens: a local tokenizer, or their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from shardlang.capture.hf import import_transformers
from shardlang.runtime.data import BYTES
from shardlang.runtime.errors import RunError

Encode = Callable[[list[str]], list[Sequence[int]]]
"""The ids of some texts, without special tokens."""

_PROBE = (
    "The quick brown fox jumps over 13 lazy dogs; it's 3.14159, isn't it?\n\tdef f(x):\n"
    "        return x ** 2  # naïve café, Übergröße, привет мир, 你好世界, こんにちは, 🙂\r\n"
    "https://example.org/a?b=c&d=%20 <b>HTML</b> {'k': [1, 2]} 0xDEADBEEF 1,000,000 $5.00 --- ...\n"
)
"""A text by whose ids two tokenizers are told apart."""

_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "[SEP]")
"""What models call the end of a document."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """What makes ids.

    Attributes:
        encode: None where texts are their bytes.
        vocabulary: how many ids there are.
        fingerprint: of the tokenizer; `bytes`, or empty where nothing is known of the ids.
        end: the id behind each document.
    """

    encode: Encode | None
    vocabulary: int
    fingerprint: str
    end: int | None


class _Tokenizer(Protocol):
    """A tokenizer of the package tokenizers."""

    def get_vocab(self, with_added_tokens: bool = True) -> Mapping[str, int]: ...
    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[_Encoding]: ...


class _Encoding(Protocol):
    ids: list[int]


def plain_encoder(vocabulary: int | None, end: str | None = None, ends: bool = True) -> Encoder:
    """Bytes; or, with a vocabulary, ids that are there already.

    Args:
        end: the number behind each document; without one, bytes are ended by a zero.
        ends: whether there is to be one.

    Raises:
        RunError: SH0652, it is no such id.
    """
    known = None if vocabulary is not None else 0
    if end is not None:
        known = _number(end, vocabulary or BYTES)
    kind = "bytes" if vocabulary is None else ""
    return Encoder(None, vocabulary or BYTES, kind, known if ends else None)


def _number(end: str, vocabulary: int) -> int:
    if not (end.isascii() and end.isdigit() and int(end) < vocabulary):
        raise RunError(
            "SH0652",
            f"`--end {end}` is no id below {vocabulary}",
            help="give a number, or name a tokenizer, whose tokens have names, by `--tokenizer`",
        )
    return int(end)


def encoder_of(path: Path, end: str | None = None, ends: bool = True) -> Encoder:
    """The tokenizer in a folder, or in a `tokenizer.json`; nothing is fetched.

    Args:
        end: the token behind each document; without one, what the folder or the vocabulary says.
        ends: whether there is to be one.

    Raises:
        RunError: SH0651, it cannot be read; SH0652, it has no such token, or none that is known.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    found = _read(file) if file.is_file() else None
    if found is None and not path.is_dir():
        help = "name a tokenizer.json, or the folder of a model"
        raise RunError("SH0651", f"there is no tokenizer at `{path}`", help=help)
    vocab, encode = _of_tokenizers(found) if found is not None else _of_transformers(path)
    known = _end(vocab, file.parent, end) if ends else None
    base = found.get_vocab(with_added_tokens=False) if found is not None else vocab
    return Encoder(encode, max(vocab.values(), default=0) + 1, _fingerprint(base, encode), known)


def _read(file: Path) -> _Tokenizer:
    try:
        found: _Tokenizer = _tokenizers(file).Tokenizer.from_file(str(file))
    except RunError:
        raise
    except Exception as error:
        raise RunError(
            "SH0651",
            f"the tokenizer in `{file}` cannot be read: {str(error).splitlines()[0]}",
            help="save it anew with its `save_pretrained`",
        ) from error
    return found


def _tokenizers(file: Path) -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise RunError(
            "SH0651",
            f"reading `{file.name}` needs the tokenizers package",
            help="install it with `pip install shardlang[data]`",
        ) from None
    package: ModuleType = tokenizers
    return package


def _of_tokenizers(found: _Tokenizer) -> tuple[Mapping[str, int], Encode]:
    def encode(texts: list[str]) -> list[Sequence[int]]:
        return [one.ids for one in found.encode_batch(texts, add_special_tokens=False)]

    return found.get_vocab(), encode


def _of_transformers(folder: Path) -> tuple[Mapping[str, int], Encode]:
    try:
        own = import_transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise RunError(
            "SH0651",
            f"there is no tokenizer in `{folder}` that can be read: {str(error).splitlines()[0]}",
            help="name the folder of a model, or a tokenizer.json",
        ) from error

    def encode(texts: list[str]) -> list[Sequence[int]]:
        found: list[Sequence[int]] = own(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return found

    vocab: Mapping[str, int] = own.get_vocab()
    return vocab, encode


def _end(vocab: Mapping[str, int], folder: Path, stated: str | None) -> int:
    """The id of the token behind each document."""
    if stated is not None and stated not in vocab:
        raise RunError(
            "SH0652",
            f"the tokenizer has no token `{stated}`",
            help="name one of its tokens by `--end`, or put none behind documents by `--no-end`",
        )
    names = [stated] if stated is not None else [_configured(folder), *_ENDS]
    found = next((vocab[name] for name in names if name in vocab), None)
    if found is None:
        raise RunError(
            "SH0652",
            "which token of the tokenizer ends a document is not known",
            help="name it by `--end TOKEN`, or put none behind documents by `--no-end`",
        )
    return found


def _configured(folder: Path) -> str:
    """The `eos_token` of a folder's configuration; empty for none."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        token = settings.get("eos_token")
    except (OSError, ValueError, AttributeError):
        return ""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _fingerprint(vocab: Mapping[str, int], encode: Encode) -> str:
    """A hash of the vocabulary without what is added to it, and of the ids of a text."""
    hash = hashlib.blake2b(digest_size=16)
    hash.update(json.dumps(sorted(vocab.items())).encode())
    hash.update(json.dumps(list(encode([_PROBE])[0])).encode())
    return hash.hexdigest()
