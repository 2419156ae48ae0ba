"""What a trace does not see: refused, or made visible, while the model is traced.

A traced graph holds operators alone. A gradient that a model defines or changes by itself would be
lost without a word, and one that it asks for would be a constant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn

from shardlang.capture.deferred import all_names
from shardlang.capture.errors import CaptureError
from shardlang.capture.nest import children, tensors
from shardlang.capture.own_backward import Used
from shardlang.ir.compat import BACKWARD_ENGINE, LIBRARY_FUNCTIONS, storage_key, tree_leaves
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import info
from shardlang.passes.normalize.fx_edit import has_argument
from shardlang.rules.call import Call


@contextlib.contextmanager
def refuse_untraceable(train: bool) -> Iterator[list[Used]]:
    """Raise SH0358 inside the body where the model deals with gradients by itself.

    Asking for a gradient is refused always, changing one where gradients matter. Yields the list of
    the autograd functions of the model's own that are used, to be checked after the body.
    """
    used: list[Used] = []
    apply = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(*BACKWARD_ENGINE, _refuse_backward))
        if train:
            checked = classmethod(_checked_apply(apply, used))
            stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", checked))
            stack.enter_context(mock.patch.object(torch.Tensor, "register_hook", _refuse_hook))
        yield used


def _refuse_backward(*_args: object, **_kwargs: object) -> NoReturn:
    raise CaptureError(
        "SH0358",
        "the model asks for a gradient inside its forward, so training it differentiates twice",
        help="write the derivative out with ordinary operators, or compute it outside of the model",
    )


def _refuse_hook(_self: torch.Tensor, _hook: Callable[..., object]) -> NoReturn:
    raise CaptureError(
        "SH0358",
        "the model hooks the gradient of a tensor, which a traced graph does not hold",
        help="change the value instead of the gradient, such as `x * s + (x - x * s).detach()`",
    )


def _checked_apply(apply: Callable[..., object], used: list[Used]) -> Callable[..., object]:
    """`Function.apply` that notes a model's own gradient where one flows."""

    def checked(kind: type[torch.autograd.Function], *args: object, **kwargs: object) -> object:
        if kind.__module__.startswith(LIBRARY_FUNCTIONS) or not torch.is_grad_enabled():
            return apply(kind, *args, **kwargs)
        if kind is torch.utils.checkpoint.CheckpointFunction:
            raise CaptureError(
                "SH0358",
                "the model recomputes activations by a backward of its own (`use_reentrant=True`)",
                help="write `checkpoint(..., use_reentrant=False)`",
            )
        if _needs_gradient((args, kwargs)):
            used.append(Used.of(kind, args))
        made = apply(kind, *args, **kwargs)
        torch.set_grad_enabled(True)  # a `no_grad` within leaves tracing in the mode of `forward`
        return made

    return checked


def _needs_gradient(tree: object) -> bool:
    """Whether a tensor among the arguments carries a gradient."""
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree_leaves(tree))


class Assigned:
    """The buffers of a model before its forward, which may put other tensors in their places.

    Attributes:
        replaced: what it has put there, by the names of the buffers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.replaced: dict[str, Tensor] = {}
        self._owned = [
            (f"{prefix}.{name}" if prefix else name, module, name, buffer)
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._versions = [_version(old) for *_, old in self._owned]
        self._params = {storage_key(p): n for n, p in model.named_parameters() if p.requires_grad}

    def write(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Turn `self.buffer = value` into a write to the buffer, which export keeps track of.

        The model writes nothing: a value may be another buffer as it was, and an output too.

        Returns:
            The outputs, copied if they lie in a buffer that is replaced.

        Raises:
            CaptureError: SH0357, a value has another shape or type, or its memory is changed.
        """
        self._refuse_memory()
        writes = []
        for full_name, module, name, old in self._owned:
            new = module._buffers.get(name)
            if new is old:
                continue
            if new is None or (new.shape, new.dtype) != (old.shape, old.dtype):
                raise _other_buffer(full_name, old, new)
            self.replaced[full_name] = new
            writes.append((old, new.detach().clone()))
            module._buffers[name] = old
        written = {storage_key(old) for old, _ in writes}
        apart = tuple(x.clone() if storage_key(x) in written else x for x in outputs)
        for old, value in writes:
            old.copy_(value)
        return apart

    def _refuse_memory(self) -> None:
        """Refuse a buffer that has been put into memory which the model or an optimizer changes.

        The program copies values: later changes of that memory would not reach the buffer.
        """
        now = [module._buffers.get(name) for _, module, name, _ in self._owned]
        changed: dict[int, tuple[str, str]] = {}
        for (name, _, _, old), version, new in zip(self._owned, self._versions, now, strict=True):
            if new is not None and _version(old) != version:
                changed[storage_key(new)] = name, f"the buffer `{name}`, which it changes in place"
        changed |= {key: (name, f"the parameter `{name}`") for key, name in self._params.items()}
        for (name, _, _, old), new in zip(self._owned, now, strict=True):
            if new is None or new is old:
                continue
            other, where = changed.get(storage_key(new), (name, ""))
            if other != name:
                raise CaptureError(
                    "SH0357",
                    f"the forward puts the buffer `{name}` into the memory of {where}",
                    help=f"keep a copy: `self.{name.rpartition('.')[2]} = ….clone()`",
                )


def _version(x: Tensor) -> int | None:
    """How often a tensor has been changed; of one made in inference mode nobody counts it."""
    return None if x.is_inference() else x._version


@contextlib.contextmanager
def refuse_freezing(model: nn.Module) -> Iterator[None]:
    """Raise SH0358 after the body if it has changed which parameters get a gradient."""
    before = {name: param.requires_grad for name, param in model.named_parameters()}
    yield
    found = {name: param.requires_grad for name, param in model.named_parameters()}
    changed = [name for name in found if found[name] != before.get(name, found[name])]
    for name in changed:
        model.get_parameter(name).requires_grad_(before[name])
    if changed:
        raise CaptureError(
            "SH0358",
            f"the forward changes whether the parameter `{changed[0]}` gets a gradient",
            help="do that in the constructor or before the spec is compiled; in `forward`, stop a"
            " gradient with `.detach()`",
        )


def refuse_shared(model: nn.Module, replaced: Sequence[str]) -> None:
    """Raise SH0357 for a replaced buffer that another module, or another name, keeps as it was."""
    names = all_names(model)
    for name in replaced:
        mine = _place(model, name)
        others = [other for other in names[name] if _place(model, other) != mine]
        if others:
            raise CaptureError(
                "SH0357",
                f"the forward replaces the buffer `{name}`, which is `{others[0]}` too",
                help="write into it, such as with `copy_`, or give each module a buffer of its own",
            )


def _place(model: nn.Module, name: str) -> tuple[int, str]:
    """The module that holds a buffer, which may have several names itself, and the last name."""
    owner, _, last = name.rpartition(".")
    return id(model.get_submodule(owner)), last


def _other_buffer(name: str, old: torch.Tensor, new: torch.Tensor | None) -> CaptureError:
    """The error for a buffer that becomes another one."""
    made = "nothing" if new is None else _kind(new)
    return CaptureError(
        "SH0357",
        f"the forward makes the buffer `{name}` {made}, it was {_kind(old)}",
        help="give the buffer its final shape and type in the constructor",
    )


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def refuse_sparse_gradients(graph: fx.Graph, leaves: Sequence[Leaf]) -> None:
    """Raise SH0356 for a lookup that would give a trainable parameter a sparse gradient."""
    trained = {leaf.node: leaf.name for leaf in leaves if leaf.trainable}
    for node in graph.nodes:
        name = next((n for n in ("sparse", "sparse_grad") if has_argument(node, n)), None)
        if name is None:
            continue
        table = node.args[0]
        if Call(node)[name] is True and table.name in trained:
            raise CaptureError(
                "SH0356",
                f"the lookup in `{trained[table.name]}` asks for a sparse gradient",
                help=f"build it with `{name}=False`: the gradients of a sharded model are dense",
                source=info(node).source,
            )


def check_output(result: object) -> None:
    """Raise SH0358 if a model returns no tensor, or hides one in an object of its own."""
    hidden = next(_hiding(result), None)
    if hidden is not None:
        raise CaptureError(
            "SH0358",
            f"the model returns its tensors inside a `{type(hidden).__name__}`",
            help="return tensors, or tuples, dicts or dataclasses of tensors",
        )
    if next(tensors(result), None) is None:
        raise CaptureError(
            "SH0358",
            f"the model returns no tensor, but {_returned(result)}",
            help="let `forward` return what is to be computed, such as the loss",
        )


def _returned(result: object) -> str:
    return "None" if result is None else f"a `{type(result).__name__}`"


def _hiding(value: object) -> Iterator[object]:
    """The objects in a structure that hold tensors where the structure does not show them."""
    if isinstance(value, torch.Tensor):
        return
    parts = children(value)
    if parts is None:
        held = vars(value).values() if hasattr(value, "__dict__") else ()
        if any(next(tensors(item), None) is not None for item in held):
            yield value
        return
    for _, item in parts:
        yield from _hiding(item)
