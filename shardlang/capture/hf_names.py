"""The names that tensors of a Hugging Face checkpoint have in the model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from shardlang.capture.hf_types import Renaming


def model_names(module: nn.Module, stored: Iterable[str]) -> dict[str, str] | None:
    """From names in the model, up to the base prefix, to names in the checkpoint.

    None if transformers has to compute on some of the stored tensors, not only rename them.
    """
    transforms = _transforms(module)
    renamings = [t for t in transforms if not hasattr(t, "operations")]
    converters = [t for t in transforms if hasattr(t, "operations")]
    names: dict[str, str] = {}
    for key in sorted(stored):
        name = key
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        if any(converter.rename_source_key(name)[1] is not None for converter in converters):
            return None
        names[name] = key
    return names


def _transforms(module: nn.Module) -> list[Renaming]:
    """What transformers does to the tensors of a checkpoint of this model."""
    try:
        from transformers import PreTrainedModel, conversion_mapping
    except ImportError:
        return []
    if not isinstance(module, PreTrainedModel):
        return []
    return list(conversion_mapping.get_model_conversion_mapping(module))
