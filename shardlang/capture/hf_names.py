"""The names that tensors of a Hugging Face checkpoint have in the model, and the way back.

Where transformers computes on stored tensors (it stacks the matrices of experts, say), one tensor
of the model is computed at a time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from shardlang.capture.hf_types import Converter, Pretrained, Renaming

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Conversion:
    """A tensor of the model that is computed from stored ones.

    Attributes:
        sources: the names of the stored tensors in natural order, each with the pattern it matches.
    """

    name: str
    converter: Converter
    sources: Sequence[tuple[str, str]]

    def value(self, module: Pretrained, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor of the model; `read` gives stored ones by their names."""
        converter = copy.deepcopy(self.converter)
        for key, pattern in self.sources:
            converter.add_tensor(self.name, key, pattern, read(key))
        (found,) = converter.convert(self.name, model=module, config=module.config).values()
        return found if isinstance(found, Tensor) else found[0]


def model_names(module: nn.Module, stored: Iterable[str]) -> dict[str, str | Conversion] | None:
    """From names in the model, up to the base prefix, to names in the checkpoint or conversions.

    None if several tensors of the model are computed from one that is stored.
    """
    transforms = _transforms(module)
    renamings = [t for t in transforms if not isinstance(t, Converter)]
    converters = [t for t in transforms if isinstance(t, Converter)]
    names: dict[str, str | Conversion] = {}
    sources: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(stored, key=_natural):
        name = key
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        target, pattern, converter = _converted(name, converters)
        if converter is None or pattern is None:
            names[name] = key
        elif len(converter.target_patterns) > 1:
            return None
        else:
            found = sources.setdefault(target, [])
            found.append((key, pattern))
            names[target] = Conversion(target, converter, found)
    return names


def _converted(
    name: str, converters: Iterable[Converter]
) -> tuple[str, str | None, Converter | None]:
    """The tensor of the model that a stored one belongs to, and what computes it."""
    for converter in converters:
        target, pattern = converter.rename_source_key(name)
        if pattern is not None:
            return target, pattern, converter
    return name, None, None


def _natural(name: str) -> list[str | int]:
    """The tenth expert after the second."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def stored_as(module: nn.Module) -> Callable[[str, Tensor], Mapping[str, Tensor]]:
    """What takes a tensor of the model to those that its checkpoints hold, by their names.

    It is the tensor itself for other models than those of transformers, and where a stored tensor
    would be computed from several: transformers loads those under the names of the model as well.
    """
    model = _pretrained(module)
    converters = [t for t in _transforms(module) if isinstance(t, Converter)]
    if model is None or any(len(c.target_patterns) > 1 for c in converters):
        return lambda name, tensor: {name: tensor}
    from transformers.core_model_loading import revert_weight_conversion

    def stored(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = revert_weight_conversion(model, {name: tensor})
        return found

    return stored


def _pretrained(module: nn.Module) -> PreTrainedModel | None:
    """The module, if it is one of transformers."""
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return None
    return module if isinstance(module, PreTrainedModel) else None


def _transforms(module: nn.Module) -> list[Renaming]:
    """What transformers does to the tensors of a checkpoint of this model."""
    model = _pretrained(module)
    if model is None:
        return []
    from transformers import conversion_mapping

    return list(conversion_mapping.get_model_conversion_mapping(model))
