"""Where a model comes from: something that builds it, calls it and knows its inputs."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shardlang.capture.compute import call_in
from shardlang.capture.deferred import Deferred
from shardlang.capture.errors import CaptureError, first_line, model_line
from shardlang.capture.model_code import model_code
from shardlang.capture.nest import nest
from shardlang.capture.setting import Setting
from shardlang.grammar.diagnostics import join_words, quote
from shardlang.runtime.data import Batch

_TENSOR = re.compile(r"'?([\w.]+\.)?\w*Tensor'?")
"""The annotation of an argument that is one tensor."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A declared input: its dotted name, type and shape; `below` bounds the integers it holds.

    A `differentiable` one gets a gradient.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    below: int | None = None
    differentiable: bool = False


class ModelSource(ABC):
    """A model that can be built any number of times, in train or eval mode.

    `keeps_modes` says that the modules' modes are those with which the model comes.
    """

    mode: str = "train"
    keeps_modes: bool = False
    setting: Setting = Setting()
    checkpoint: Path | None = None
    compute: torch.dtype | None = None

    @abstractmethod
    def construct(self) -> nn.Module:
        """Run the model's constructor."""

    @property
    def advice(self) -> str:
        """What to do where the model's code depends on tensor data; empty for nothing special."""
        return ""

    def build(self) -> nn.Module:
        """The model in this source's mode. Raises `CaptureError` if its constructor fails."""
        with model_code():
            model = self.construct()
            if not self.keeps_modes:
                model.train(self.mode == "train")
        self.setting.apply(model)
        return model

    def in_setting(self, setting: Setting) -> ModelSource:
        """The same model in another state; both share the one on fake tensors."""
        assert self.deferred is not None
        other = copy.copy(self)
        other.setting = setting
        if setting.evaluated is not None:
            other.mode = "eval" if "" in setting.evaluated else "train"
        return other

    def computing(self, dtype: torch.dtype | None) -> ModelSource:
        """The same model, called with its parameters and inputs cast to a type if it is narrower.

        Both share the one on fake tensors.
        """
        if dtype == self.compute:
            return self
        assert self.deferred is not None
        other = copy.copy(self)
        other.compute = dtype
        return other

    @functools.cached_property
    def deferred(self) -> Deferred:
        """The model on fake tensors, built once."""
        try:
            return Deferred(self.build)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                "SH0352",
                f"the model cannot be built: {type(error).__name__}: {first_line(error)}",
                help="fix the model's code, or the arguments in the `model` statement",
                source=model_line(error),
            ) from error

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the model's forward, without `self`."""
        return inspect.signature(self.deferred.module.forward)

    @property
    def forward_names(self) -> tuple[str, ...]:
        """The names that the model's forward gives its arguments, in order."""
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        kinds = (*named, inspect.Parameter.KEYWORD_ONLY)
        return tuple(p.name for p in self.signature.parameters.values() if p.kind in kinds)

    @property
    def accepts_any_name(self) -> bool:
        """Whether the forward takes keyword arguments that it does not name."""
        kinds = {p.kind for p in self.signature.parameters.values()}
        return inspect.Parameter.VAR_KEYWORD in kinds

    def input_names(self) -> tuple[str, ...]:
        """Every input name that a pattern may match."""
        return self.forward_names

    def call(self, module: nn.Module, inputs: Mapping[str, object]) -> object:
        """Call `module` with inputs under their dotted names, and return what it returns."""
        args, kwargs = self.arguments({**inputs, **self.setting.arguments})
        with model_code():
            if self.compute is not None:
                return call_in(self.compute, module, args, kwargs)
            result: object = module(*args, **kwargs)
        return result

    def arguments(self, inputs: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """Positional and keyword arguments for inputs under their dotted names."""
        kwargs = nest(inputs)
        args: list[object] = []
        for p in self.signature.parameters.values():
            if p.kind is inspect.Parameter.POSITIONAL_ONLY and p.name in kwargs:
                args.append(kwargs.pop(p.name))
            if p.kind is inspect.Parameter.VAR_POSITIONAL and p.name in kwargs:
                args.extend(_items(p.name, kwargs.pop(p.name)))
        return args, kwargs

    def integer_range(self, spec: InputSpec) -> tuple[int, int]:
        """The half-open range of valid integers for an input."""
        return 0, 2 if spec.below is None else spec.below

    def ignores_labels(self, spec: InputSpec) -> bool:
        """Whether -100 in this input means that the position has no label."""
        return False

    def batches(self, seed: int) -> Iterator[Batch] | None:
        """The model's own data as dicts of dotted input names, if it brings any."""
        return None

    def check_names(self, names: Iterable[str]) -> None:
        """Raise SH0353 for a name that the forward does not give to an argument."""
        known = set(self.signature.parameters)
        for name in sorted(set(names) - known):
            if not self.accepts_any_name:
                raise unknown_input(name, sorted(known))

    def taken(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """The arguments of a call, by name, as `arguments` understands their parts.

        Raises SH0353 for those that a program would take otherwise than the plain model.
        """
        return given

    def check_inputs(self, specs: Mapping[str, InputSpec]) -> None:
        """Raise SH0353 for an input that the forward does not know, or one that it lacks."""
        given = {name.split(".")[0] for name in (*specs, *self.setting.arguments)}
        self.check_names(given)
        for p in self.signature.parameters.values():
            optional = p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            if p.name not in given and not optional:
                raise CaptureError(
                    "SH0353", f"the model needs an input `{p.name}`", help=_help_to_declare(p)
                )


def _help_to_declare(argument: inspect.Parameter) -> str:
    """How the spec declares an argument, which may be a container unless the forward says not."""
    name, rest = argument.name, ": f32[8, 16] [_, _]"
    help = f"declare it, with type and layout: `input {name} {rest}`"
    if _TENSOR.fullmatch(inspect.formatannotation(argument.annotation)):
        return help
    return f'{help}; of a list or a dict each part, by number or key: `input "{name}.KEY" {rest}`'


def _items(name: str, given: object) -> list[object]:
    """The arguments that `*name` takes, declared one by one."""
    if isinstance(given, list):
        return given
    raise CaptureError(
        "SH0353",
        f"the forward takes any number of arguments as `*{name}`, and `{name}` is declared as one",
        help=f"declare each by its number: `{name}.0`, `{name}.1`",
        input=name,
    )


def unknown_input(name: str, known: list[str]) -> CaptureError:
    """The error for an input that forward does not take, with the nearest names."""
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        help = f"did you mean {join_words(quote(near))}?"
    elif known:
        help = f"its inputs are {join_words(quote(known), 'and')}"
    else:
        help = "its forward takes no arguments: drop the `input` statement"
    return CaptureError("SH0353", f"the model takes no input `{name}`", help=help, input=name)


class CallableSource(ModelSource):
    """A model from a Python function, for programs that build their models themselves."""

    def __init__(
        self, build: Callable[[], nn.Module], mode: str = "train", keeps_modes: bool = False
    ) -> None:
        self._construct = build
        self.mode, self.keeps_modes = mode, keeps_modes

    def construct(self) -> nn.Module:
        return self._construct()
