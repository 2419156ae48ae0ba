"""Adjustments to transformers that hold while a model is traced."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

from shardlang.capture.hf_experts import experts_forward
from shardlang.capture.source import InputSpec


@contextlib.contextmanager
def export_patches(inputs: Sequence[InputSpec]) -> Iterator[None]:
    """Trace transformers models as they run eagerly.

    Under export, transformers builds explicit masks where it would otherwise ask the kernel for
    causal attention, so that shapes may change later; ours are fixed.

    Under tracing, transformers cannot look at position ids to see whether sequences are packed, and
    builds a mask for packed ones in every model. Positions that the model counts itself are never
    packed, so without a `position_ids` input the check has a known answer.

    Mixtures of experts are traced as one product by groups of rows, whichever way of transformers
    to compute it is chosen, see `hf_experts`.
    """
    masking: object = sys.modules.get("transformers.masking_utils")
    with contextlib.ExitStack() as stack:
        if hasattr(masking, "is_torchdynamo_exporting"):
            stack.enter_context(mock.patch.object(masking, "is_torchdynamo_exporting", bool))
        given = any(spec.name == "position_ids" for spec in inputs)
        if hasattr(masking, "find_packed_sequence_indices") and not given:
            stack.enter_context(mock.patch.object(masking, "find_packed_sequence_indices", _none))
        experts: object = sys.modules.get("transformers.integrations.moe")
        if hasattr(experts, "ALL_EXPERTS_FUNCTIONS"):
            known = experts.ALL_EXPERTS_FUNCTIONS._global_mapping
            same = dict.fromkeys(("grouped_mm", "batched_mm"), experts_forward)
            stack.enter_context(mock.patch.dict(known, same))
        yield


def _none(position_ids: object) -> None:
    """No packed sequences."""
