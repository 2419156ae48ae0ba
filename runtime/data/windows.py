"""Samples of tokens: windows of the sequence length, whole, packed, or of one document each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shardlang.runtime.data.batch import IDS, LABELS, NO_ROLES, Roles, Wanted
from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.tokens import Tokens, check_largest
from shardlang.runtime.errors import RunError

How: TypeAlias = Literal["", "packed", "documents"]
"""How tokens are cut: windows of a text, windows that know of documents, a document each."""

IGNORED = -100
POSITIONS, MASK, SEGMENTS = "position_ids", "attention_mask", "segment_ids"
GIVEN = (IDS, LABELS, POSITIONS, MASK, SEGMENTS)
"""The inputs that tokens give."""


class TokenSamples:
    """Windows of tokens as the inputs of a language model.

    - windows (`""`): the row of tokens is cut every `s` tokens; what is left at its end is not
      used. Labels equal the ids: the model shifts them.
    - `packed`: the same windows, in which documents are kept apart: `position_ids` begin anew with
      each, `segment_ids` count them from 1, an `attention_mask` of four dims lets a token see the
      earlier ones of its document alone, and the first token of a document is no label.
    - `documents`: each document alone, in pieces of `s` tokens, the last one filled up with zeros
      that are no labels and that no mask lets see.
    """

    def __init__(
        self,
        tokens: Tokens,
        wanted: Sequence[Wanted],
        vocabulary: int,
        how: How = "",
        roles: Roles = NO_ROLES,
    ) -> None:
        """Look whether the model takes them.

        Args:
            wanted: the inputs of the model; those of tokens are `b s`, and a mask may be `b 1 s s`.
            vocabulary: how many tokens the model knows.

        Raises:
            RunError: SH0605, the inputs do not fit; SH0652, there are other tokens.
        """
        self._tokens, self._how, self._vocabulary = tokens, how, vocabulary
        self._length = check_inputs(wanted, how, roles)
        self._wanted = {one.name: one for one in wanted}
        self._roles = roles
        self._pieces = _pieces(tokens, self._length) if how == "documents" else None
        check_largest(tokens.name, tokens.largest or 0, vocabulary)

    @property
    def name(self) -> str:
        """The file."""
        return self._tokens.name

    @property
    def fingerprint(self) -> str:
        """That of the tokens."""
        return self._tokens.fingerprint

    @property
    def cut(self) -> str:
        """The length of a window and what stands in it."""
        return f"{self._how or 'windows'} of {self._length} tokens"

    def __len__(self) -> int:
        if self._pieces is not None:
            return int(self._pieces[-1])
        return len(self._tokens) // self._length

    def read(self, numbers: Numbers, names: Collection[str]) -> dict[str, Tensor]:
        """Some inputs of some samples."""
        starts, lengths = self._spans(numbers)
        within = np.arange(self._length)
        kept = within < lengths[:, None]
        ids = self._tokens.read(np.where(kept, starts[:, None] + within, starts[:, None]))
        ids = np.where(kept, ids, 0)
        check_largest(self.name, int(ids.max(initial=0)), self._vocabulary)
        rows = _Rows(ids, kept, self._begins(starts))
        roles = {name: self._roles.get(name, name) for name in names}
        return {name: rows.input(self._wanted[name], roles[name], self._how) for name in names}

    def _spans(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Where each sample begins in the tokens, and how many it has."""
        if self._pieces is None:
            return numbers * self._length, np.full_like(numbers, self._length)
        pieces, first = self._pieces, self._tokens.starts
        document = np.searchsorted(pieces, numbers, side="right") - 1
        start = first[document] + (numbers - pieces[document]) * self._length
        ends = np.append(first, len(self._tokens))[document + 1]
        return start, np.minimum(ends - start, self._length)

    def _begins(self, starts: Numbers) -> NDArray[np.bool_]:
        """Which tokens of a row are the first ones of a document, or of the row. Shape `b s`."""
        found = np.zeros((len(starts), self._length), dtype=bool)
        found[:, 0] = True
        if self._how != "packed":
            return found
        first = self._tokens.starts
        for row, start in enumerate(starts):
            low, high = np.searchsorted(first, [start, start + self._length])
            found[row, first[low:high] - start] = True
        return found


def check_inputs(inputs: Sequence[Wanted], how: How = "", roles: Roles = NO_ROLES) -> int:
    """Refuse a model that does not take what tokens give, or that would not keep them apart.

    Returns:
        The length of a sequence.

    Raises:
        RunError: SH0605.
    """
    wanted = {roles.get(one.name, one.name): one for one in inputs}
    others = sorted(wanted.keys() - set(GIVEN))
    ids = wanted.get(IDS)
    if others or ids is None or len(ids.shape) != 2:
        named = ", ".join(f"`{name}`" for name in others or sorted(one.name for one in inputs))
        raise RunError(
            "SH0605",
            f"tokens give `{IDS}` and `{LABELS}` of two dims, and the model takes {named}",
            help='say which inputs they are: `data "corpus.bin" (ids = "x", labels = "y")`; or give'
            " other data",
        )
    for role, one in wanted.items():
        _check_shape(one, role, ids.shape)
    if how == "packed":
        _check_apart(wanted, ids.shape)
    return ids.shape[1]


def _check_apart(wanted: Mapping[str, Wanted], ids: tuple[int, ...]) -> None:
    """Refuse a model that would not keep packed documents apart."""
    (b, s), mask = ids, wanted.get(MASK)
    dims = 0 if mask is None else len(mask.shape)
    if dims == 4 or (dims == 0 and {POSITIONS, SEGMENTS} & wanted.keys()):
        return
    raise RunError(
        "SH0605",
        "`packed` keeps documents apart by positions that begin anew or by a mask of four dims, and"
        f" the model takes {f'an `{MASK}` of two' if dims else 'neither'}",
        help=f"declare `{POSITIONS} : i64[{b}, {s}]`, or `{MASK} : bool[{b}, 1, {s}, {s}]` instead"
        " of a mask of two dims, laid out as the tokens are; or leave out `packed`",
    )


def _check_shape(one: Wanted, role: str, ids: tuple[int, ...]) -> None:
    b, s = ids
    fits = one.shape == ids or (role == MASK and one.shape == (b, 1, s, s))
    if not fits or (one.dtype.is_floating_point and role != MASK):
        raise RunError(
            "SH0605",
            f"tokens give `{one.name}` as integers of {b} x {s}, and the model takes it as"
            f" {str(one.dtype).removeprefix('torch.')} of {' x '.join(map(str, one.shape))}",
            help="declare it as the tokens are declared",
        )


def _pieces(tokens: Tokens, length: int) -> Numbers:
    """How many samples lie before each document, and before the end."""
    ends = np.append(tokens.starts[1:], len(tokens))
    counts = -(-(ends - tokens.starts) // length)
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of tokens, all `b s`: the ids, which of them are tokens, which begin a document."""

    ids: Numbers
    kept: NDArray[np.bool_]
    begins: NDArray[np.bool_]

    def input(self, wanted: Wanted, role: str, how: How) -> Tensor:
        """One input of these rows."""
        if role == LABELS:
            ignored = ~self.kept | (self.begins if how == "packed" else False)
            return torch.from_numpy(np.where(ignored, IGNORED, self.ids)).to(wanted.dtype)
        if role == MASK:
            return self._mask(wanted)
        made = {IDS: self.ids, POSITIONS: self._positions(), SEGMENTS: self._segments()}
        return torch.from_numpy(made[role]).to(wanted.dtype)

    def _positions(self) -> Numbers:
        """Of each token in its document."""
        at = np.broadcast_to(np.arange(self.ids.shape[1]), self.ids.shape)
        return at - np.maximum.accumulate(np.where(self.begins, at, 0), axis=1)

    def _segments(self) -> Numbers:
        """The document of each token, counted from 1; 0 where there is none."""
        return np.where(self.kept, np.cumsum(self.begins, axis=1), 0)

    def _mask(self, wanted: Wanted) -> Tensor:
        """Which tokens are some, or which a token sees: a number to add where it is no bool."""
        if len(wanted.shape) == 2:
            return torch.from_numpy(self.kept).to(wanted.dtype)
        segments = torch.from_numpy(self._segments())
        same = segments[:, :, None] == segments[:, None, :]
        seen = (same & torch.ones_like(same).tril()).unsqueeze(1)
        if not wanted.dtype.is_floating_point:
            return seen.to(wanted.dtype)
        hidden = torch.finfo(wanted.dtype).min
        return torch.zeros_like(seen, dtype=wanted.dtype).masked_fill(~seen, hidden)
