"""Data: where batches come from, in which order, and how a run goes on with them."""

from shardlang.runtime.data.batch import BYTES, IDS, LABELS, Batch, Encode, Wanted
from shardlang.runtime.data.order import Order, Place
from shardlang.runtime.data.own import NumberedStream, OwnStream
from shardlang.runtime.data.samples import Part, Samples
from shardlang.runtime.data.stream import READY, Reader, SampleStream, Stream, WholeReader
from shardlang.runtime.data.text import text_tokens
from shardlang.runtime.data.tokens import Tokens
from shardlang.runtime.data.windows import How, TokenSamples, check_inputs

__all__ = [
    "BYTES",
    "IDS",
    "LABELS",
    "READY",
    "Batch",
    "Encode",
    "How",
    "NumberedStream",
    "Order",
    "OwnStream",
    "Part",
    "Place",
    "Reader",
    "SampleStream",
    "Samples",
    "Stream",
    "TokenSamples",
    "Tokens",
    "Wanted",
    "WholeReader",
    "check_inputs",
    "text_tokens",
]
