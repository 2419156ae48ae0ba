"""A model built without memory whose tensors can be computed one at a time."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import nn

from shardlang.capture.errors import CaptureError, first_line
from shardlang.capture.generators import draws, seeded
from shardlang.capture.held import Path, held_tensors
from shardlang.capture.recorded import CannotReplayError
from shardlang.capture.seeding import unseeded
from shardlang.capture.shared_memory import check_memory
from shardlang.capture.tape import Tape
from shardlang.ir.compat import FakeTensor, FakeTensorMode, export_fake_mode, storage_key
from shardlang.ir.hushed import hushed

TRACED = 0
"""The seed under which the traced model is built."""


class Deferred:
    """A module on fake tensors, with the means to compute each tensor's initial value.

    The constructor is recorded (see `Tape`). A constructor that cannot be recorded, because it
    loads files, seeds the generator, draws from numpy or Python, or computes on data in ways the
    tape does not see, is run for real with all generators seeded instead: that takes the whole
    model's memory once per `tensors` call.
    `reason` then says what stood in the way.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self.reason = ""
        self.fake_mode: FakeTensorMode = export_fake_mode()
        self._tape: Tape | None = Tape(self.fake_mode)
        try:
            with self._tape.recording(), warnings.catch_warnings(), seeded(TRACED), hushed():
                warnings.simplefilter("ignore")
                before = dict(draws())
                with unseeded(CannotReplayError("the constructor seeds the generator")):
                    self.module = build()
                self._check_draws(before)
            self._check_replay()
        except CaptureError:
            raise
        except Exception as error:
            self._tape = None
            self.reason = f"{type(error).__name__}: {first_line(error)}"
            self.module = build_real(build, TRACED)
        check_tensors(self.module)
        check_memory(self.module)
        check_hooks(self.module)

    @property
    def recorded(self) -> bool:
        """Whether single tensors can be computed without building the whole model."""
        return self._tape is not None

    def tensors(self, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and persistent buffer with its initial value, tied ones once."""
        module = self.module if self._tape else build_apart(self._build, seed, self.module)
        for name, tensor in state(module):
            yield name, self.value(tensor, seed)

    def value(self, tensor: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """The real value of one tensor that the model holds, in memory of its own."""
        if self._tape is None or not isinstance(tensor, FakeTensor):
            return tensor.detach().clone()
        return self._tape.value(tensor, seed)

    def held(
        self, seed: int, wanted: Collection[Path] | None = None
    ) -> Iterator[tuple[Path, torch.Tensor]]:
        """The tensors that no state dict holds, by their places, with their initial values."""
        module = self.module if self._tape else build_apart(self._build, seed, self.module)
        for path, tensor in held_tensors(module):
            if wanted is not None and path not in wanted:
                continue
            with contextlib.suppress(CannotReplayError):
                yield path, self.value(tensor, seed)

    def _check_draws(self, before: Mapping[str, object]) -> None:
        """Make sure that no tensor comes from a generator that the tape does not see."""
        drawn = [name for name, state in draws() if before.get(name, state) != state]
        if drawn:
            raise CannotReplayError(f"the constructor draws from `{drawn[0]}`")

    def _check_replay(self) -> None:
        """Make sure that the tape covers every tensor of the model."""
        tape = self._tape
        assert tape is not None
        for tensor in [*self.module.parameters(), *self.module.buffers()]:
            if not tape.covers(tensor):
                raise CannotReplayError


def build_real(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model built for real, all generators seeded; the caller's random state is kept."""
    with seeded(seed):
        return build()


def build_apart(build: Callable[[], nn.Module], seed: int, other: nn.Module) -> nn.Module:
    """As `build_real`; what is then written into the model leaves an earlier build as it is.

    Two builds share memory where the constructor takes tensors that the model's file has made once.
    """
    model = build_real(build, seed)
    return copy.deepcopy(model) if _memory(model) & _memory(other) else model


def _memory(model: nn.Module) -> set[int]:
    """The storages of the real tensors that a model holds."""
    held = [tensor for _, tensor in held_tensors(model)]
    found = [*model.parameters(), *model.buffers(), *held]
    dense = (x for x in found if x.layout is torch.strided and not isinstance(x, FakeTensor))
    return {storage_key(x) for x in dense}


def fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a tensor of a real model a value; one that is expanded gets memory for it."""
    if any(
        size > 1 and not stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
    ):
        tensor.data = value.to(tensor.dtype, copy=True)
    else:
        tensor.copy_(value)


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
    """Raise SH0356 for a parameter or buffer of a kind that cannot be split or trained."""
    kinds = {"parameter": module.named_parameters(), "buffer": module.named_buffers()}
    for kind, named in kinds.items():
        for name, tensor in named:
            found = _unusual(tensor)
            if found is not None:
                what, remedy = found
                raise CaptureError("SH0356", f"{kind} `{name}` {what}", help=remedy)


def check_hooks(module: nn.Module) -> None:
    """Raise SH0358 for a module with a hook on its gradients: a traced graph holds none."""
    for name, part in module.named_modules():
        if part._backward_hooks or part._backward_pre_hooks:
            raise CaptureError(
                "SH0358",
                f"module `{name}` has a backward hook, which a traced graph does not hold",
                help="remove the hook; what it does to gradients belongs into the training loop",
            )


def _unusual(tensor: torch.Tensor) -> tuple[str, str] | None:
    """What is wrong with a tensor of the model and what to do, or None."""
    if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
        return "has no shape yet", "give the lazy module its input size in the constructor"
    if tensor.layout is not torch.strided:
        return "is sparse", "use a dense tensor; for zeros that must stay, multiply by a mask"
    if tensor.is_quantized:
        return "is quantized", "build the model in a floating type"
    if tensor._backward_hooks:
        remedy = "remove the hook; what it does to the gradient belongs into the training loop"
        return "has a hook on its gradient, which a traced graph does not hold", remedy
    return None
