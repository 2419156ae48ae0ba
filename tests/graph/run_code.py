"""Running the text of a step on simulated devices: what a name stands for, on all of them.

A variable holds what each device holds. Collectives are those of the program, in its order; the
text must name each as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from shardlang.graph.code_values import call_name, collective_arguments, device_text
from shardlang.ir.collective import Kind
from shardlang.ir.compat import OpOverload, map_leaves
from shardlang.ir.device_values import at_device
from shardlang.ir.mesh import Mesh
from shardlang.ir.step import (
    Operand,
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    record,
    routed_by,
)
from shardlang.runtime.simulate_step import GraphSimulator


@dataclass(eq=False)
class Each:
    """What each device holds under one name."""

    values: Sequence[Any]

    def __getitem__(self, place: int) -> Each:
        return Each([value[place] for value in self.values])

    def __iter__(self) -> Iterator[Each]:
        return (self[place] for place in range(len(self.values[0])))

    def __add__(self, other: object) -> Each:
        return on_each(operator.add, len(self.values), self, other)

    def __sub__(self, other: object) -> Each:
        return on_each(operator.sub, len(self.values), self, other)

    def __mul__(self, other: object) -> Each:
        return on_each(operator.mul, len(self.values), self, other)


@dataclass(frozen=True)
class Op:
    """An op of PyTorch under its short name, and its overloads."""

    target: object
    devices: int

    def __getattr__(self, overload: str) -> Op:
        return Op(getattr(self.target, overload), self.devices)

    def __call__(self, *args: object, **kwargs: object) -> object:
        assert callable(self.target)
        return on_each(self.target, self.devices, *args, **kwargs)


def on_each(call: Callable[..., object], devices: int, *args: object, **kwargs: object) -> Each:
    """A call on all devices, which draw alike."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    state, made = torch.get_rng_state(), []
    for device in range(devices):
        torch.set_rng_state(state)
        own = [x.values[device] if isinstance(x, Each) else x for x in leaves]
        own = [x.target if isinstance(x, Op) else x for x in own]
        given, named = pytree.tree_unflatten(own, spec)
        made.append(call(*given, **named))
    return Each(made)


class Running:
    """The functions of a text, for one program.

    Attributes:
        sent: the names of the collectives that have been called, in order.
    """

    def __init__(self, text: str, mesh: Mesh, nodes: Iterable[fx.Node]) -> None:
        self.mesh, self.coords = mesh, list(mesh.coords())
        nodes = list(nodes)
        self.todo = [n for n in nodes if is_collective(n) and does_something(n)]
        self.sent: list[str] = []
        self.space: dict[str, object] = {"torch": torch, "wait": lambda started: started}
        self.space |= {"operand": Operand}
        self._name(nodes)
        for kind in Kind:
            if kind is not Kind.NOTHING:
                self.space[kind.value] = self._collective(kind.value)
                self.space[f"start_{kind.value}"] = self._collective(f"start_{kind.value}")
        exec(compile(text, "step", "exec"), self.space)

    def __call__(self, function: str, *args: object) -> Any:
        """Call a function of the text."""
        call = self.space[function]
        assert callable(call)
        with torch.no_grad():
            return call(*args)

    def _name(self, nodes: Iterable[fx.Node]) -> None:
        """The names of ops, and what stands for a value that depends on the device."""
        table: dict[str, Each] = {}

        def note(value: object) -> object:
            if text := device_text(value):
                table[text] = Each([at_device(value, at) for at in self.coords])
                for part in getattr(value, "parts", ()):
                    note(part)
            return value

        for node in nodes:
            if node.op != "call_function" or is_collective(node):
                continue
            map_leaves((node.args, node.kwargs), note)
            if node.target is record and not isinstance(node.args[0], OpOverload):
                self.space[call_name(node.args[0])] = Op(node.args[0], len(self.coords))
            name = call_name(node.target)
            if isinstance(node.target, OpOverload):
                space = name.partition(".")[0]
                self.space[space] = Op(getattr(torch.ops, space), len(self.coords))
            else:
                self.space[name] = Op(node.target, len(self.coords))
        for head in ("size", "start", "indices", "shard", "part", "route"):
            self.space[head] = lambda text, head=head: table[f'{head}("{text}")']
        self.space["by_part"] = lambda axes, each: table[f'by_part("{axes}", {each})']

    def _collective(self, name: str) -> Callable[..., Each]:
        """The next collective of the program, which must be the one that the text names."""

        def call(values: Each | list[Each], *args: object, **kwargs: object) -> Each:
            node = self.todo.pop(0)
            pairs, by = collectives_of(node), routed_by(node)
            start = "start_" if is_start(node) else ""
            assert name == start + pairs[0][1].kind.value
            said = collective_arguments([c for _, c in pairs], several=is_bucket(node))
            groups = args[0] if by is not None else None
            rest = args[1:] if by is not None else args
            assert eval(f"read({', '.join(said)})", {"read": taken}) == taken(*rest, **kwargs)
            given = values if isinstance(values, list) else [values]
            held = {x: one.values for (x, _), one in zip(pairs, given, strict=True)}
            if by is not None:
                assert isinstance(groups, Each)
                held[by] = groups.values
            self.sent.append(name)
            made = GraphSimulator(self.mesh, node.graph)._collective(node, held)
            return Each(made)

        return call


def taken(*args: object, **kwargs: object) -> object:
    return args, kwargs


def does_something(node: fx.Node) -> bool:
    """Whether a collective is written in the text."""
    return any(collective.kind is not Kind.NOTHING for _, collective in collectives_of(node))
