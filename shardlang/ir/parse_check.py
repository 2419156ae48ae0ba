"""Whether a call in a graph's text can be made, and makes what its type says."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from shardlang.ir.arguments import tensors_in
from shardlang.ir.compat import NO_FAKE_RESULT, FakeTensorMode, OpOverload, tree_map_only
from shardlang.ir.device_values import specialise
from shardlang.ir.graph import constrain, is_item, is_reshard, reshard_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info, results_of
from shardlang.ir.parse_calls import Made
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.printed_type import printed_type
from shardlang.ir.reshard import apply_reshard
from shardlang.ir.spelling import layouts_of, target_name

CORRECT = "correct the type, or what the node reads"


def check_arguments(made: Made) -> None:
    """Refuse a call with arguments that its op or function does not have, or lacks."""
    target = made.target
    wrong, names = _misfit(target, made) if isinstance(target, OpOverload) else _unbound(made)
    if wrong:
        taken = ", ".join(f"`{name}`" for name in names) or "none"
        said = f"`{target_name(target)}` is not called so: {wrong}"
        raise GraphTextError(said, f"its arguments are {taken}", made.place)


def _misfit(op: OpOverload, made: Made) -> tuple[str, list[str]]:
    """What is wrong with the arguments of an op, and those that it has."""
    names = [argument.name for argument in op._schema.arguments]
    needed = [a.name for a in op._schema.arguments if not a.has_default_value()]
    free = [argument.name for argument in op._schema.arguments if not argument.kwarg_only]
    given = [*free[: len(made.args)], *made.kwargs]
    unknown = next((name for name in made.kwargs if name not in names), None)
    twice = next((name for name in made.kwargs if name in free[: len(made.args)]), None)
    missing = next((name for name in needed if name not in given), None)
    if len(made.args) > len(free):
        return f"it takes {len(free)} arguments without a name", names
    if unknown is not None:
        return f"it has no argument `{unknown}`", names
    if twice is not None:
        return f"`{twice}` is given twice", names
    return f"`{missing}` is missing" if missing is not None else "", names


def _unbound(made: Made) -> tuple[str, list[str]]:
    """What is wrong with the arguments of a function, and those that it has."""
    assert callable(made.target)
    signature = inspect.signature(made.target)
    try:
        signature.bind(*made.args, **made.kwargs)
    except TypeError as fault:
        return str(fault), list(signature.parameters)
    return "", []


@dataclass(slots=True)
class Trial:
    """Makes the calls of one graph on fake tensors.

    Attributes:
        local: whether the graph is a program: its calls are made as the first device makes them.
        shards: the fake shards of values, where it is.
    """

    mode: FakeTensorMode
    mesh: Mesh
    local: bool = False
    shards: dict[fx.Node, Tensor] = field(default_factory=dict)

    def check(self, node: fx.Node, place: Place) -> None:
        """Refuse a node whose type is not that of what its call gives.

        Raises:
            GraphTextError: the call gives something else, or cannot be made.
        """
        if is_item(node) or is_reshard(node):
            agree(node, _read(node), _said(node), place)
        elif self._is_tried(node):
            agree(node, self._made(node, place), self._wanted(node), place)

    def _is_tried(self, node: fx.Node) -> bool:
        """Whether the call can be made on fakes alone.

        A function of ours may communicate. What a device draws, and rows that are routed, have
        other shapes; shards of several results are typed where they are picked.
        """
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            return node.target is constrain
        here = info(node)
        if not self.local:
            return True
        if here.random or here.layout is None:
            return False
        values = (node, *node.all_input_nodes)
        return not any(any(layout.orders) for value in values for layout in layouts_of(value))

    def _made(self, node: fx.Node, place: Place) -> list[Tensor]:
        args, kwargs = node.args, node.kwargs
        if self.local:
            args, kwargs = specialise((args, kwargs), self._first)
        assert callable(node.target)
        try:
            with self.mode, torch.no_grad():
                args, kwargs = tree_map_only(fx.Node, self._value, (args, kwargs))
                return tensors_in(node.target(*args, **kwargs))
        except NO_FAKE_RESULT:
            return self._wanted(node)
        # what PyTorch raises for wrong operands has no common type
        except Exception as fault:
            said = (str(fault).splitlines() or [type(fault).__name__])[0]
            wrong = f"`{target_name(node.target)}` cannot be called so: {said}"
            raise GraphTextError(wrong, "correct its arguments", place) from None

    @property
    def _first(self) -> dict[str, int]:
        return {axis.name: 0 for axis in self.mesh.axes}

    def _value(self, node: fx.Node) -> object:
        if not self.local:
            return info(node).value
        if node not in self.shards:
            (whole,) = results_of(info(node).value)
            (layout,) = layouts_of(node)
            self.shards[node] = torch.empty(layout.local_shape(self._first), dtype=whole.dtype)
        return self.shards[node]

    def _wanted(self, node: fx.Node) -> list[Tensor]:
        """What the call is said to give, in a program on the first device."""
        said = _said(node)
        if not self.local:
            return said
        with self.mode:
            pairs = zip(said, layouts_of(node), strict=True)
            return [torch.empty(y.local_shape(self._first), dtype=x.dtype) for x, y in pairs]


def _said(node: fx.Node) -> list[Tensor]:
    return results_of(info(node).value)


def _read(node: fx.Node) -> list[Tensor]:
    """What a reshard, or the pick of one result, is given."""
    values = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
    if not is_item(node):
        read = [x for n in values if isinstance(n, fx.Node) for x in results_of(info(n).value)]
        if node.target is apply_reshard and reshard_of(node).reads is not None:
            return [x.new_empty(reshard_of(node).dst.shape) for x in read]
        return read
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    several = info(source).value
    assert isinstance(several, (list, tuple))
    return results_of(several[index])


def agree(node: fx.Node, made: Sequence[Tensor], said: Sequence[Tensor], place: Place) -> None:
    """Refuse a type that is not that of what the node's call gives."""
    if list(map(_type, made)) != list(map(_type, said)):
        gives = ", ".join(map(_type, made)) or "no tensor"
        raise GraphTextError(f"`{node}` is {gives}, not as its type says", CORRECT, place)


def _type(value: Tensor) -> str:
    return printed_type(value.dtype, Layout.whole(value.shape))


def kept(layouts: Sequence[Layout], said: Sequence[Layout], node: fx.Node, place: Place) -> None:
    """Refuse a type that says more of a layout than the graph keeps, or otherwise."""
    if list(layouts) != list(said):
        found = ", ".join(map(str, layouts)) or "nothing"
        wrong = f"`{node}` lies as {found}, not as its type says"
        remedy = "write that, or say with `split` what of the op is split"
        raise GraphTextError(wrong, remedy, place)
