"""A model built without memory whose tensors can be computed one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from shardlang.capture.errors import CaptureError, first_line
from shardlang.capture.tape import CannotReplayError, Tape
from shardlang.ir.compat import FakeTensor, FakeTensorMode, export_fake_mode


class Deferred:
    """A module on fake tensors, with the means to compute each tensor's initial value.

    The constructor is recorded (see `Tape`). A constructor that cannot be recorded, because it
    loads files or computes on data in ways the tape does not see, is run for real under
    `torch.manual_seed(seed)` instead: that takes the whole model's memory once per `tensors` call.
    `reason` then says what stood in the way.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self.reason = ""
        self.fake_mode: FakeTensorMode = export_fake_mode()
        self._tape: Tape | None = Tape(self.fake_mode)
        try:
            with self._tape.recording():
                self.module = build()
            self._check_replay()
        except CaptureError:
            raise
        except Exception as error:
            self._tape = None
            self.reason = f"{type(error).__name__}: {first_line(error)}"
            self.module = build_real(build, 0)
        check_tensors(self.module)

    @property
    def recorded(self) -> bool:
        """Whether single tensors can be computed without building the whole model."""
        return self._tape is not None

    def tensors(self, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and persistent buffer with its initial value, tied ones once."""
        module = self.module if self._tape else build_real(self._build, seed)
        for name, tensor in state(module):
            yield name, self.value(tensor, seed)

    def value(self, tensor: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """The real value of one tensor that the model holds."""
        if self._tape is None or not isinstance(tensor, FakeTensor):
            return tensor.detach()
        return self._tape.value(tensor, seed)

    def _check_replay(self) -> None:
        """Make sure that the tape covers every tensor of the model."""
        tape = self._tape
        assert tape is not None
        for tensor in [*self.module.parameters(), *self.module.buffers()]:
            if not tape.covers(tensor):
                raise CannotReplayError


def build_real(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model built for real under a seed; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers under their first names, shared ones once."""
    yield from module.named_parameters()
    persistent = persistent_names(module)
    for name, buffer in module.named_buffers():
        if name in persistent:
            yield name, buffer


def persistent_names(module: nn.Module) -> frozenset[str]:
    """Names of the buffers that belong to the state dict."""
    names = set()
    for prefix, part in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        own = part._buffers.keys() - part._non_persistent_buffers_set
        names |= {dot + name for name in own}
    return frozenset(names)


def all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every parameter and buffer name, all names of the same tensor, the first one first."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in named:
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: tuple(by_tensor[id(tensor)]) for name, tensor in named}


def check_tensors(module: nn.Module) -> None:
    """Raise SH0356 for a parameter that is sparse, lazy or quantized."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(
                "SH0356",
                f"parameter `{name}` has no shape yet",
                help="run the lazy module once on example data in the build function",
            )
        if parameter.layout is not torch.strided or parameter.is_quantized:
            kind = "quantized" if parameter.is_quantized else "sparse"
            raise CaptureError(
                "SH0356", f"parameter `{name}` is {kind}", help="use a dense parameter"
            )
