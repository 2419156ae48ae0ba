"""The call side of the sharded model: a program on this device, run on tensors held elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from shardlang.ir.pieces import piece_of
from shardlang.ir.program import LeafPlacement, LocalProgram
from shardlang.runtime.checks import check_same_program
from shardlang.runtime.errors import RunError
from shardlang.runtime.executor import load_program
from shardlang.runtime.groups import Groups
from shardlang.runtime.regather import Regather

Slot: TypeAlias = "tuple[dict[str, Any], str]"
"""A table that holds a tensor, and the tensor's name in it."""


class CallConvention(Protocol):
    """How the model is called: its own arguments in, its own structure out."""

    def bind_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Input name to tensor."""
        ...

    def build_inputs(self, flat: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments from input names."""
        ...

    def rebuild_output(self, values: Sequence[Any]) -> Any:
        """The model's output around its tensors."""
        ...


class Flat:
    """The plain convention: inputs by keyword, outputs in a dict, both by name."""

    def __init__(self, program: LocalProgram) -> None:
        self._inputs = [leaf.name for leaf in program.leaves if leaf.kind == "input"]
        self._outputs = [r.name for r in program.results if r.kind == "output"]

    def bind_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Positional arguments in the order of the inputs."""
        return {**dict(zip(self._inputs, args, strict=False)), **kwargs}

    def build_inputs(self, flat: Mapping[str, Tensor]) -> dict[str, Any]:
        """The names as they are."""
        return dict(flat)

    def rebuild_output(self, values: Sequence[Any]) -> dict[str, Any]:
        """Outputs by name."""
        return dict(zip(self._outputs, values, strict=True))


class LoadedProgram:
    """A program on this device; `slots` says where each leaf that is no input is found."""

    def __init__(
        self,
        program: LocalProgram,
        groups: Groups,
        slots: Mapping[str, Slot],
        call: CallConvention | None = None,
    ) -> None:
        """Load the program. Collective: construct it on every rank.

        Raises:
            RunError: SH0602, the ranks hold different programs.
        """
        check_same_program(program, groups)
        self.program, self.groups = program, groups
        self._slots = slots
        self._convention = call or Flat(program)
        self._inputs = [leaf for leaf in program.leaves if leaf.kind == "input"]
        self._outputs = [i for i, r in enumerate(program.results) if r.kind == "output"]
        self._fetch = [_fetcher(leaf, slots) for leaf in program.leaves]
        self._mutations = [
            (i, r.name) for i, r in enumerate(program.results) if r.kind == "mutation"
        ]
        self._shapes = {leaf.name: leaf.layout.local_shape(groups.coord) for leaf in self._inputs}
        again = any(node.meta.get("regather") for node in program.graph.nodes)
        self._regather = Regather() if again else None
        self._run = load_program(program, groups, self._regather)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the model with this device's pieces of its inputs."""
        results = self._call_program(self._convention.bind_call(args, kwargs))
        return self._convention.rebuild_output([results[i] for i in self._outputs])

    def named_outputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This device's pieces of the outputs by name, from its pieces of the inputs by name."""
        results = self._call_program(given)
        return {self.program.results[i].name: results[i] for i in self._outputs}

    def _call_program(self, given: Mapping[str, Tensor]) -> Sequence[Tensor]:
        self._check_inputs(given)
        leaves = [given[key] if source is None else source[key] for source, key in self._fetch]
        with self._regather.saving() if self._regather is not None else nullcontext():
            results: Sequence[Tensor] = self._run(*leaves)
        if self._mutations:
            self._write_back(results)
        return results

    def _check_inputs(self, given: Mapping[str, Tensor]) -> None:
        for name, shape in self._shapes.items():
            if name not in given:
                raise RunError(
                    "SH0605",
                    f"the call lacks the input `{name}`",
                    help="pass every input that the spec declares",
                )
            if given[name].shape != shape:
                raise _wrong_shape(name, tuple(given[name].shape), shape)

    @torch.no_grad()
    def _write_back(self, results: Sequence[Tensor]) -> None:
        for place, name in self._mutations:
            table, key = self._slots[name]
            table[key].copy_(results[place])

    def shard_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """This device's pieces of whole inputs, as keyword arguments for a call."""
        given = self._convention.bind_call(args, kwargs)
        return self._convention.build_inputs(self.input_pieces(given))

    def input_pieces(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This device's pieces of whole inputs, both by name."""
        at, device = self.groups.coord, self.groups.device
        return {
            leaf.name: piece_of(given[leaf.name], leaf.layout, at).to(device).contiguous()
            for leaf in self._inputs
        }


def _fetcher(
    leaf: LeafPlacement, slots: Mapping[str, Slot]
) -> tuple[Mapping[str, Any] | None, str]:
    """Where the program's argument is found at each call: a table, or the call itself."""
    return (None, leaf.name) if leaf.kind == "input" else slots[leaf.name]


def _wrong_shape(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> RunError:
    return RunError(
        "SH0605",
        f"input `{name}` is {list(given)}, and this device's piece is {list(wanted)}",
        help="cut whole inputs with `shard_inputs`",
    )
