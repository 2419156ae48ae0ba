"""The batches of a run: from data, from the model's own file, or random ones."""

from __future__ import annotations

from pathlib import Path

from shardlang.capture import make_inputs
from shardlang.compiler.driver import Compiled
from shardlang.runtime.data import (
    IDS,
    NumberedStream,
    Order,
    OwnStream,
    SampleStream,
    Stream,
    TokenSamples,
    WholeReader,
    check_inputs,
    text_tokens,
)
from shardlang.training.tokens import Tokenizer


def stream_of(
    compiled: Compiled, seed: int, data: Path | None = None, tokenizer: Tokenizer | None = None
) -> Stream:
    """Whole batches, the same for every mesh.

    From a text file, endless; else from the model's own `batches`; else random ones, endless.

    Raises:
        RunError: SH0605, the data does not fit the model's inputs; SH0651, it cannot be read.
    """
    if data is not None:
        return _from_data(compiled, seed, data, tokenizer)
    source = compiled.source
    own = OwnStream(source.batches, seed)
    if own.is_given:
        return own
    return NumberedStream(lambda number: make_inputs(source, compiled.inputs, number), seed)


def _from_data(
    compiled: Compiled, seed: int, data: Path, tokenizer: Tokenizer | None
) -> SampleStream:
    encode = tokenizer.encode if tokenizer is not None else None
    known = vocabulary(compiled)
    check_inputs(compiled.inputs)
    samples = TokenSamples(text_tokens(data, known, encode), compiled.inputs, known)
    names = tuple(spec.name for spec in compiled.inputs)
    rows = compiled.inputs[0].shape[0]
    return SampleStream(samples, rows, Order(len(samples), seed), WholeReader(names))


def vocabulary(compiled: Compiled) -> int:
    """How many tokens the model knows; 0 for a model that reads none."""
    for spec in compiled.inputs:
        if spec.name == IDS:
            return compiled.source.integer_range(spec)[1]
    return 0
