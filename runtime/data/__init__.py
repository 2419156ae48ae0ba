"""Data: where batches come from, in which order, and how a run goes on with them."""

from shardlang.runtime.data.batch import BYTES, IDS, LABELS, Batch, Encode, Roles, Wanted
from shardlang.runtime.data.documents import Piece, pieces_of
from shardlang.runtime.data.files import kind_of, open_tokens
from shardlang.runtime.data.index import Header
from shardlang.runtime.data.order import Order, Place
from shardlang.runtime.data.own import NumberedStream, OwnStream
from shardlang.runtime.data.samples import Part, Samples
from shardlang.runtime.data.stream import READY, Reader, SampleStream, Stream, WholeReader
from shardlang.runtime.data.tables import TableSamples
from shardlang.runtime.data.text import text_tokens
from shardlang.runtime.data.tokens import Tokens
from shardlang.runtime.data.windows import How, TokenSamples, check_inputs
from shardlang.runtime.data.writer import TokenWriter

__all__ = [
    "BYTES",
    "IDS",
    "LABELS",
    "READY",
    "Batch",
    "Encode",
    "Header",
    "How",
    "NumberedStream",
    "Order",
    "OwnStream",
    "Part",
    "Piece",
    "Place",
    "Reader",
    "Roles",
    "SampleStream",
    "Samples",
    "Stream",
    "TableSamples",
    "TokenSamples",
    "TokenWriter",
    "Tokens",
    "Wanted",
    "WholeReader",
    "check_inputs",
    "kind_of",
    "open_tokens",
    "pieces_of",
    "text_tokens",
]
