"""The state in which a model is traced, and what it is called with beside tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides, beside the inputs' types and shapes, what a forward computes.

    Attributes:
        evaluated: names of the modules in evaluation mode (`""` is the model); None: as built.
        trained: names of the parameters that get a gradient; None: as built.
        arguments: Python arguments of the forward under their dotted names.
    """

    evaluated: frozenset[str] | None = None
    trained: frozenset[str] | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> None:
        """Bring a model into this state."""
        if self.evaluated is not None:
            for name, module in model.named_modules():
                module.training = name not in self.evaluated
        if self.trained is not None:
            for name, param in model.named_parameters():
                param.requires_grad = name in self.trained

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The same for the length of the body."""
        before = Setting(evaluated(model), trained(model))
        self.apply(model)
        try:
            yield
        finally:
            before.apply(model)


def evaluated(model: nn.Module) -> frozenset[str]:
    """The modules in evaluation mode."""
    return frozenset(name for name, module in model.named_modules() if not module.training)


def trained(model: nn.Module) -> frozenset[str]:
    """The parameters that get a gradient."""
    return frozenset(name for name, param in model.named_parameters() if param.requires_grad)


@contextlib.contextmanager
def as_in_training() -> Iterator[None]:
    """Gradients on and autocast off, whatever the caller has set: a trace keeps both for good."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
