"""Files of tokens, mapped into memory: only what is read is ever in it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from shardlang.runtime.data import index, megatron, tables
from shardlang.runtime.data.index import DTYPES, Header, read_index
from shardlang.runtime.data.megatron import read_megatron
from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.tokens import Ids, Mapped, Tokens, fingerprint_of, unreadable
from shardlang.runtime.errors import RunError

Kind = Literal["tokens", "table", "text"]


def kind_of(path: Path) -> Kind:
    """What a file is, by its name: tokens, a table (or a folder of one), or else a text."""
    if path.suffix in (".bin", ".npy"):
        return "tokens"
    return "table" if path.suffix in tables.SUFFIXES or path.is_dir() else "text"


def open_tokens(path: Path) -> Tokens:
    """The tokens of a `.bin` with its index, of Megatron's pair, or of an array of numpy's.

    Raises:
        RunError: SH0651, a file is missing, is cut short, or is not what its name says.
    """
    if path.suffix == ".npy":
        return _array(path)
    beside = path.with_name(path.name + index.SUFFIX)
    pair = path.with_suffix(megatron.SUFFIX)
    if beside.exists() or not pair.exists():
        return _indexed(path, beside)
    dtype, count, starts = read_megatron(pair)
    return _mapped(path, dtype, count, starts, None)


def _indexed(path: Path, beside: Path) -> Tokens:
    if path.exists() and not beside.exists():
        raise RunError(
            "SH0651",
            f"`{path}` has no index `{beside.name}` beside it, so the type of its ids is unknown",
            help="make it by `shardlang data prepare`, or save ids with `numpy.save`, as .npy",
        )
    if not path.exists():
        raise unreadable(path, FileNotFoundError(2, "No such file or directory"))
    header, starts = read_index(beside)
    return _mapped(path, header.dtype, header.tokens, starts, header)


def _mapped(path: Path, dtype: str, count: int, starts: Numbers, header: Header | None) -> Tokens:
    kind = np.dtype(dtype).newbyteorder("<")
    file = Mapped(path, count * kind.itemsize)
    found = path.stat().st_size
    if found != file.wanted:
        raise RunError(
            "SH0651",
            f"`{path}` has {found:,} bytes, and its index says {file.wanted:,}",
            help="put the index beside it that was made with it",
        )
    ids: Ids = np.memmap(path, kind, mode="r", shape=(count,)) if count else np.zeros(0, kind)
    if header is None:
        return Tokens(str(path), ids, starts, fingerprint_of(ids, starts), file=file)
    mark = fingerprint_of(ids, starts, header.checksum)
    return Tokens(str(path), ids, starts, mark, header.largest, header.tokenizer, file)


def _array(path: Path) -> Tokens:
    """Ids in an array of one dim, or documents of one length in the rows of one of two."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError) as error:
        raise RunError(
            "SH0651",
            f"`{path}` is no whole array of numpy's: {error}",
            help="save it with `numpy.save`",
        ) from error
    if found.dtype.name not in DTYPES or found.ndim not in (1, 2):
        raise RunError(
            "SH0651",
            f"`{path}` is an array of {found.dtype.name} of the shape {list(found.shape)}, and ids"
            f" are in one dim or two, of {', '.join(DTYPES)}",
            help="save whole numbers as numpy.uint16, or uint32 for a larger vocabulary",
        )
    rows, ids = found.shape[0] if found.ndim == 2 else 1, found.reshape(-1)
    starts = np.arange(rows, dtype=np.int64) * (ids.size // max(rows, 1))
    mark = fingerprint_of(ids, starts)
    return Tokens(str(path), ids, starts, mark, file=Mapped(path, ids.nbytes))
