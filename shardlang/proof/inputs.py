"""What a proof feeds the model: the model file's own batch, or random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from shardlang.capture import CaptureError, InputSpec, ModelSource, make_inputs
from shardlang.capture.errors import first_line, model_line
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.ir.printed_type import dtype_name
from shardlang.runtime.data import Batch


@dataclass(frozen=True, slots=True)
class Fed:
    """Where the inputs of a proof come from.

    Attributes:
        own: whether they are the first batch of the model file's `batches(seed)`.
        note: why they are random though there are such batches, or what of the batch is left out.
    """

    own: bool = False
    note: str = ""

    def __str__(self) -> str:
        what = "the model's own batches" if self.own else "random"
        return f"{what}: {self.note}" if self.note else what

    def to_json(self) -> dict[str, str]:
        """The document's form."""
        return {"source": "batches" if self.own else "random", "note": self.note}


def proof_inputs(
    source: ModelSource, specs: Sequence[InputSpec], seed: int
) -> tuple[dict[str, Tensor], Fed]:
    """A whole tensor for every declared input, and where it comes from.

    The model file's own first batch is taken if it has every declared input at its shape and dtype,
    else all inputs are random.

    Raises:
        CaptureError: SH0350, the file's `batches` fails.
    """
    batch = _own_batch(source, seed)
    if batch is None:
        return make_inputs(source, specs, seed), Fed()
    given = _tensors(batch)
    misfit = next(filter(None, (_misfit(given, spec) for spec in specs)), "")
    if misfit:
        return make_inputs(source, specs, seed), Fed(note=f"{misfit} in the model's own batches")
    known = {spec.name for spec in specs}
    extra = sorted(name for name in batch if name not in known)
    note = f"without {join_words(quote(extra), 'and')}, not declared in the spec" if extra else ""
    return {name: given[name].detach() for name in known}, Fed(own=True, note=note)


def _own_batch(source: ModelSource, seed: int) -> Batch | None:
    """The first batch of the model's own, if it brings any."""
    try:
        batches = source.batches(seed)
        return None if batches is None else next(batches, None)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            "SH0350",
            f"`batches` fails: {type(error).__name__}: {first_line(error)}",
            help="fix it: it takes a seed and yields dicts from input names to tensors",
            source=model_line(error),
        ) from error


def _tensors(batch: object) -> dict[str, Tensor]:
    """The tensors of a batch; none of what is not a dict."""
    items = batch.items() if isinstance(batch, Mapping) else ()
    return {name: value for name, value in items if isinstance(value, Tensor)}


def _misfit(given: Mapping[str, Tensor], spec: InputSpec) -> str:
    """How the tensors of a batch do not fit a declared input, in words; empty where they fit."""
    value = given.get(spec.name)
    if value is None:
        return f"there is no `{spec.name}`"
    if (value.dtype, tuple(value.shape)) == (spec.dtype, spec.shape):
        return ""
    have = f"{dtype_name(value.dtype)}{list(value.shape)}"
    return f"`{spec.name}` is {have}, not {dtype_name(spec.dtype)}{list(spec.shape)},"
