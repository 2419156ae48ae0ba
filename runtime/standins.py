"""Stand-ins for the model's own modules: their classes and settings around the sharded tensors.

A loop finds `isinstance(part, nn.Linear)`, `model.layers[0]` and `part.eps` as it does on the plain
model. The program was made from the modules as they were, so what a loop changes in them beside
tensors and modes would change nothing: `Standins.check` refuses it at the next call.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from operator import is_
from typing import NoReturn

import torch
from torch import Tensor, nn

from shardlang.runtime.errors import RunError
from shardlang.runtime.unchanged import Unchanged, may_be_noted

_FIXED = (
    bool, int, float, complex, str, bytes, type(None), type, Enum, torch.dtype, torch.device,
    types.FunctionType, types.BuiltinFunctionType,
)  # fmt: skip
_NEW = nn.Module().__dict__
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LACKING = object()
_BEFORE = "change the model before it is compiled"


@dataclass(frozen=True, slots=True)
class Standin:
    """One module of the loaded model, and what its program was made from.

    Attributes:
        kind: its class.
        source: the class of the model's own module.
        settings: its plain attributes, by name.
        unknown: names of the model's attributes that a stand-in does not have.
        children: its modules, by name.
        tensors: names of the parameters and buffers of the model's own module.
        size: how many attributes it has at first.
    """

    name: str
    module: nn.Module
    kind: type
    source: type
    settings: Mapping[str, object]
    unknown: frozenset[str]
    children: Mapping[str, nn.Module | None]
    tensors: frozenset[str]
    size: int

    def check(self) -> None:
        """Raise SH0613 for a change that the program would not carry out."""
        held = self.module.__dict__
        if type(self.module) is not self.kind:
            raise self._changed("its class", f"`{type(self.module).__name__}`")
        if not all(map(is_, map(held.get, self.settings), self.settings.values())):
            self._check_settings(held)
        if len(held) != self.size:
            self._check_new(held)
        if held["_modules"] or self.children:
            self._check_children(held["_modules"])
        for tensors in filter(None, (held["_parameters"], held["_buffers"])):
            self._check_tensors(tensors)
        if self.name and any(map(held.__getitem__, _HOOKS)):
            raise _hooked(self.name)

    def _check_settings(self, held: Mapping[str, object]) -> None:
        for name, value in self.settings.items():
            found = held.get(name, _LACKING)
            if found is not value and not _same(found, value):
                raise self._changed(f"`{name}`", _text(found))

    def _check_new(self, held: Mapping[str, object]) -> None:
        """A name that the model's forward could read is not free for notes of a loop."""
        for name in held.keys() - self.settings.keys() - _NEW.keys():
            if name in self.unknown or name in _names_in(self.source):
                raise self._changed(f"`{name}`", _text(held[name]))

    def _check_children(self, found: Mapping[str, nn.Module | None]) -> None:
        known = self.children
        if found.keys() == known.keys() and all(map(is_, found.values(), known.values())):
            return
        for name in found.keys() | self.children.keys():
            child = found.get(name, _LACKING)
            if child is not self.children.get(name, _LACKING):
                raise self._changed(f"the module `{name}`", _text(child))

    def _check_tensors(self, found: Mapping[str, Tensor | None]) -> None:
        for name, tensor in found.items():
            if tensor is not None and name not in self.tensors:
                raise self._changed(f"the tensor `{name}`", "one that the model did not have")

    def _changed(self, what: str, found: str) -> RunError:
        where = f" of `{self.name}`" if self.name else " of the model"
        return RunError(
            "SH0613", f"{what}{where} is {found} now, and the program is made without that change",
            help=_BEFORE,
        )  # fmt: skip


class Standins:
    """All modules of a loaded model."""

    def __init__(self, root: nn.Module, model: nn.Module) -> None:
        """Make the model's modules anew beneath `root`, without their tensors.

        A module under several names has one stand-in.
        """
        made: dict[nn.Module, nn.Module] = {model: root}
        for _, own in model.named_modules():
            made.setdefault(own, _bare(type(own)))
        named = list(model.named_modules())
        self._all = [_standin(name, own, made) for name, own in named]
        self._unchanged: Unchanged | None = None
        self._apart: list[Standin] = []

    def __iter__(self) -> Iterator[Standin]:
        return iter(self._all)

    def modules(self) -> dict[str, nn.Module]:
        """Every module once, by its first name."""
        return {one.name: one.module for one in self._all}

    def check(self) -> None:
        """Look for what has changed and would have no effect.

        Raises:
            RunError: SH0613.
        """
        if self._unchanged is None or not self._unchanged():
            for one in self._all:
                one.check()
            self._note()
        for one in self._apart:
            one.check()

    def _note(self) -> None:
        """Take note of the modules as they are; the others are looked at in every call."""
        noted = [one for one in self._all if may_be_noted(one.module)]
        self._apart = [one for one in self._all if not may_be_noted(one.module)]
        settings = [one.settings.keys() for one in noted]
        self._unchanged = Unchanged([one.module for one in noted], settings)

    def copied(self, root: nn.Module, memo: dict[int, object]) -> Standins:
        """The same beneath a copy of the root, with copies of the tensors."""
        twins = {id(one.module): _bare(one.kind) for one in self._all}
        twins[id(self._all[0].module)] = root
        memo.update(twins)
        for one in self._all[1:]:
            twins[id(one.module)].__dict__.update(copy.deepcopy(one.module.__dict__, memo))
        other = copy.copy(self)
        other._all = [_moved(one, twins) for one in self._all]
        other._unchanged, other._apart = None, []
        return other


def _moved(one: Standin, twins: Mapping[int, nn.Module]) -> Standin:
    children = {n: None if m is None else twins[id(m)] for n, m in one.children.items()}
    return replace(one, module=twins[id(one.module)], children=children)


def _bare(kind: type[nn.Module]) -> nn.Module:
    """A module of a class, without its constructor; of none where the class does not let it."""
    try:
        made: nn.Module = object.__new__(kind)
        made.__dict__.update(nn.Module().__dict__)
    except TypeError:
        return nn.Module()
    return made


def _standin(name: str, own: nn.Module, made: Mapping[nn.Module, nn.Module]) -> Standin:
    module, given = made[own], {n: v for n, v in vars(own).items() if n not in _NEW}
    settings = {n: v for n, v in given.items() if _is_plain(v) and not hasattr(nn.Module, n)}
    if not name:
        settings = {n: v for n, v in settings.items() if not hasattr(type(module), n)}
    module.__dict__.update(copy.deepcopy(settings))
    if name:
        settings["forward"] = module.__dict__["forward"] = _refusing(name)
    unknown = frozenset(given) - frozenset(settings)
    _hush(module, unknown)
    for table in ("_parameters", "_buffers"):
        none = {n: None for n, tensor in own.__dict__[table].items() if tensor is None}
        module.__dict__[table].update(none)
    children = {n: None if m is None else made[m] for n, m in own._modules.items()}
    module._modules.update(children)
    held = {**own._parameters, **own._buffers}
    return Standin(
        name, module, type(module), type(own), settings, unknown, children,
        frozenset(n for n, tensor in held.items() if tensor is not None), len(module.__dict__),
    )  # fmt: skip


def _hush(module: nn.Module, unknown: frozenset[str]) -> None:
    """Keep a module that tells of attributes which a stand-in does not have from doing so."""
    code = getattr(type(module).extra_repr, "__code__", None)
    if code is not None and unknown.intersection(code.co_names):
        module.__dict__["extra_repr"] = str


def _is_plain(value: object) -> bool:
    """Whether a value is compared by what it says."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, _FIXED)


def _same(found: object, value: object) -> bool:
    return type(found) is type(value) and _is_plain(found) and bool(found == value)


@lru_cache(maxsize=1024)
def _names_in(kind: type) -> frozenset[str]:
    """The names of a class, and those that its methods speak of."""
    own = [c for c in kind.__mro__ if c not in nn.Module.__mro__]
    found = {name for c in own for name in vars(c)}
    for function in (f for c in own for f in vars(c).values()):
        code = getattr(function, "__code__", None)
        if code is not None:
            found.update(code.co_names, (x for x in code.co_consts if isinstance(x, str)))
    return frozenset(found) - set(dir(nn.Module))


def _refusing(name: str) -> Callable[..., object]:
    def forward(*args: object, **kwargs: object) -> NoReturn:
        raise RunError(
            "SH0613", f"`{name}` is called by itself, and the program is made for the whole model",
            help="call the whole model, and let it return what you need from within",
        )  # fmt: skip

    return forward


def _hooked(name: str) -> RunError:
    return RunError(
        "SH0613", f"`{name}` has a hook, and the program does not call the model's modules",
        help="hooks on the whole module, on parameters and on outputs are called; let the model"
        " return what you need from within",
    )  # fmt: skip


def _text(value: object) -> str:
    if value is _LACKING:
        return "missing"
    text = repr(value) if _is_plain(value) and not callable(value) else ""
    return f"`{text}`" if 0 < len(text) < 60 else f"another `{type(value).__name__}`"
