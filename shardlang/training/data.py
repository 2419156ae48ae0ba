"""The batches of a run: from data, from the model's own file, or random ones."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

from shardlang.capture import make_inputs
from shardlang.capture.index_bounds import limits
from shardlang.compiler.driver import Compiled
from shardlang.runtime.agree import Agreement
from shardlang.runtime.data import (
    IDS,
    LABELS,
    READY,
    NumberedStream,
    Order,
    OwnStream,
    Part,
    Reader,
    Roles,
    Samples,
    SampleStream,
    Stream,
    TableSamples,
    Tokens,
    TokenSamples,
    WholeReader,
    check_inputs,
    kind_of,
    open_tokens,
    text_tokens,
)
from shardlang.runtime.data.rows import check_same_data
from shardlang.runtime.data.tokens import unreadable
from shardlang.runtime.errors import RunError, concerning
from shardlang.runtime.module import held
from shardlang.runtime.trainer.trainees import ShardedTrainee
from shardlang.spec.types import DataDecl
from shardlang.training.tokens import Tokenizer, fingerprint_for, own_tokenizer, tokenizer_of


def stated_data(compiled: Compiled, path: Path | None = None) -> DataDecl | None:
    """What the spec says of data, with another file where one is given; None for nothing."""
    stated = compiled.spec.data
    if path is None:
        return stated
    return DataDecl(path) if stated is None else replace(stated, path=path)


def stream_of(
    compiled: Compiled, seed: int, data: Path | None = None, reader: Reader | None = None
) -> Stream:
    """The batches to train on, the same for every mesh.

    From the data of the spec, or of another file, endless; else from the model's own `batches`;
    else random ones, endless.

    Args:
        reader: what a device reads of each batch; None for all of it.

    Raises:
        RunError: SH0605, the data does not fit the model's inputs; SH0651, it cannot be read;
            SH0652, its tokens are not the model's.
    """
    stated = stated_data(compiled, data)
    if stated is None:
        return _without_data(compiled, seed)
    samples = samples_of(compiled, stated)
    kept = _kept(samples, stated.validation)
    train = Part(samples, 0, len(samples) - kept) if kept else samples
    order = Order(len(train), seed, stated.shuffle, stated.drop_last)
    return SampleStream(train, _rows(compiled), order, reader or _whole(compiled), READY)


def shared_stream(
    compiled: Compiled, trainee: ShardedTrainee, seed: int, data: Path | None = None
) -> Stream:
    """The batches to train on, of which each device reads its own rows. Collective.

    Raises:
        RunError: as `stream_of`, on every rank where one raises it; SH0612, the ranks read other
            data.
    """
    groups = held(trainee.sharded).groups
    reader = trainee.reader()
    with concerning("data"):
        stream = Agreement(groups).together(lambda: stream_of(compiled, seed, data, reader))
        check_same_data(stream, groups)
    return stream


def evaluation_stream(
    compiled: Compiled,
    seed: int,
    path: Path | None = None,
    reader: Reader | None = None,
) -> Stream:
    """The batches to evaluate on, from the same place and in the same order each time.

    From another file, or from the part of the spec's data that `validation` keeps; without any
    data, batches as the run trains on, of another seed.

    Args:
        reader: what a device reads of each; None for all of it.

    Raises:
        RunError: SH0605, the spec's data keeps no part for validation, or too small a one.
    """
    stated = stated_data(compiled, path)
    if stated is None:
        return _without_data(compiled, seed + 1)
    samples = samples_of(compiled, stated)
    kept = len(samples) if path is not None else _kept(samples, stated.validation)
    if not kept:
        raise RunError(
            "SH0605",
            "the spec's data keeps no samples for evaluation",
            help=f'keep a part: `data "{stated.path.name}" (validation = 0.01)`; or name a file',
        )
    held_out = Part(samples, len(samples) - kept, len(samples))
    order = Order(kept, seed, shuffle=False, drop_last=True)
    return SampleStream(held_out, _rows(compiled), order, reader or _whole(compiled), 0)


def samples_of(compiled: Compiled, stated: DataDecl) -> Samples:
    """The samples of some data.

    Raises:
        RunError: SH0605, SH0651, SH0652.
    """
    path, inputs, roles = stated.path, compiled.inputs, _roles(compiled, stated)
    if not path.exists():
        raise unreadable(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    known = vocabulary(compiled, stated)
    table = kind_of(path) == "table"
    if table and stated.cut is not None:
        raise _meaningless(f"`{stated.cut}` cuts tokens, and the rows of `{path.name}` are samples")
    if table:
        return TableSamples(path, inputs, known, stated.split or "train", roles)
    if stated.split is not None:
        raise _meaningless(f"`split` names a part of a data set, and `{path.name}` has none")
    how = stated.cut or ""
    check_inputs(inputs, how, roles)
    return TokenSamples(_tokens(compiled, path, known), inputs, known, how, roles)


def _meaningless(message: str) -> RunError:
    return RunError("SH0605", message, help="leave it out of the `data` statement")


def _roles(compiled: Compiled, stated: DataDecl) -> Roles:
    """Which inputs are the tokens and the labels.

    Raises:
        RunError: SH0605, the model has no such input.
    """
    known = {spec.name for spec in compiled.inputs}
    for name, usual in ((stated.ids, IDS), (stated.labels, LABELS)):
        if name != usual and name not in known:
            raise _meaningless(f"the spec declares no input `{name}`, which `data` names")
    return {stated.ids: IDS, stated.labels: LABELS}


def _tokens(compiled: Compiled, path: Path, known: int) -> Tokens:
    if kind_of(path) == "text":
        return text_tokens(path, known, tokenizer_of(compiled.source, known).encode)
    tokens = open_tokens(path)
    own = fingerprint_for(compiled.source)
    if own and tokens.tokenizer and own != tokens.tokenizer:
        raise RunError(
            "SH0652",
            f"`{path}` was made by another tokenizer than the model's",
            help="make it again: `shardlang data prepare --tokenizer` takes the model's folder",
        )
    return tokens


def tokenizer_for(compiled: Compiled, stated: DataDecl) -> Tokenizer | None:
    """What reads a text, or has made a file of tokens; None where that is not known.

    Raises:
        RunError: SH0605, the model's tokenizer is missing or cannot be read.
    """
    kind = kind_of(stated.path)
    if kind == "text":
        return tokenizer_of(compiled.source, vocabulary(compiled, stated))
    if kind == "tokens" and open_tokens(stated.path).tokenizer == "bytes":
        return Tokenizer()
    return own_tokenizer(compiled.source)


def _kept(samples: Samples, part: float) -> int:
    """How many of the last samples are kept for evaluation."""
    return math.ceil(len(samples) * part)


def _without_data(compiled: Compiled, seed: int) -> Stream:
    source = compiled.source
    own = OwnStream(source.batches, seed)
    if own.is_given:
        return own
    return NumberedStream(lambda number: make_inputs(source, compiled.inputs, number), seed)


def _rows(compiled: Compiled) -> int:
    """The rows of a whole batch."""
    return compiled.inputs[0].shape[0]


def _whole(compiled: Compiled) -> Reader:
    return WholeReader(tuple(spec.name for spec in compiled.inputs))


def vocabulary(compiled: Compiled, stated: DataDecl) -> int:
    """How many tokens the model knows; 0 for a model that reads none.

    As the input is declared, else as the tables have rows in which the model looks them up.
    """
    for spec in compiled.inputs:
        if spec.name == stated.ids:
            found = limits(compiled.captured) if spec.below is None else ()
            rows = [one.high for one in found if one.input == spec.name and not one.steps]
            return min(rows, default=compiled.source.integer_range(spec)[1])
    return 0
