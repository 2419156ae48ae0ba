"""The sharded model as an ordinary module: local shards under the model's own names."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor, nn

from shardlang.ir.compat import Backend
from shardlang.ir.leaf import LeafKind
from shardlang.runtime import optim_states, tensor_ops
from shardlang.runtime.backends import Backends, compiler_around
from shardlang.runtime.calls import tensor_at
from shardlang.runtime.changes import mark_updated
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.held import Held
from shardlang.runtime.outside import outside, outside_itself
from shardlang.runtime.standins import Standins
from shardlang.runtime.tables import Tables, slot_of
from shardlang.runtime.tensor_files import remember
from shardlang.runtime.variants import Compiler, Variants


class ShardedModule(nn.Module):
    """A program with its parameters, buffers and constants on one device.

    Parameters are this device's shards; what an optimizer does element by element to them it does
    to the model. `forward` takes inputs as `shard_inputs` makes them. An output that an axis splits
    is a tensor like the parameters: of the whole shape, with this device's shard in it. One that no
    axis splits, such as the loss, is a plain tensor. Backpropagating from either gives every
    parameter the gradient of its shard.
    """

    def __init__(
        self,
        compiler: Compiler,
        groups: Groups,
        tensors: Mapping[str, Tensor],
        transient: Collection[str] = (),
        backend: Backend | None = None,
    ) -> None:
        """Load the declared program on this device. Collective: construct it on every rank.

        Args:
            compiler: makes the programs, the declared one and those for other calls.
            tensors: this device's shard of every parameter and persistent buffer, by name.
            transient: buffers that do not belong to the state dict.
            backend: what compiles the regions of the programs; None to run them op by op.

        Raises:
            RunError: SH0602, the ranks hold different programs; SH0608, a tensor is missing or has
                another shape; SH0611, devices that hold the same shard differ in its values.
        """
        super().__init__()
        remember(groups)
        tensor_ops.install(groups)
        optim_states.install()
        made = compiler.make(compiler.declared, {})
        standins = Standins(self, compiler.model)
        tables = Tables(self, made.program, groups)
        tables.fill(made, tensors, transient)
        variants = Variants(compiler, groups, standins, tables, made)
        slots = {
            x.name: tables.slot(x)
            for x in made.program.leaves
            if x.kind in (LeafKind.PARAM, LeafKind.BUFFER)
        }
        stated = made.program.step.precision.updated
        for leaf in made.program.leaves if stated else ():
            if leaf.kind is LeafKind.PARAM:
                mark_updated(tensor_at(slots[leaf.name]), stated)
        kept = frozenset(self.state_dict(keep_vars=True)).intersection(slots)
        self._shardlang = Held(made.program, groups, variants, slots, kept, Backends(backend))

    def __getattr__(self, name: str) -> Any:
        """As torch has it; what the plain model alone has is said to be the plain model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            mine = self.__dict__.get("_shardlang")
            plain = type(mine.variants.compiler.model) if mine is not None else nn.Module
            if not hasattr(plain, name):
                raise
            raise AttributeError(
                f"`{name}` is the plain `{plain.__name__}`'s: of the model, a loaded module has the"
                " call, the modules and their tensors. Write what it does around calls of the"
                " module",
                name=name,
                obj=self,
            ) from None

    @outside_itself
    def forward(self, *args: object, **kwargs: object) -> object:
        """Call the model with inputs from `shard_inputs`, or from another call. Collective.

        A plain tensor is this device's shard of an input that is split.

        A call that differs from the declared one, in the sizes of its inputs, in other arguments,
        in the modules' modes or in which tensors get a gradient, is answered by a program of its
        own, which is compiled when it is first needed. Other changes of the modules are refused.

        Under `torch.compile` its backend compiles the regions of the program, and nothing else.

        Raises:
            RunError: SH0605 or SH0613, no program can answer the call; SH0612, the ranks differ in
                how they call; SH0644, the backend cannot compile a region, or is to compile
                one graph.
        """
        return self._answer(compiler_around(), args, kwargs)

    @outside
    def _answer(
        self, around: object | None, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        mine = self._shardlang
        loaded, shards = mine.variants.choose(args, kwargs)
        made = loaded(shards, mine.backends.regions(around))
        mine.variants.compiler.fill((args, kwargs), made)
        return made

    def shard_inputs(self, *args: object, **kwargs: object) -> dict[str, object]:
        """Whole inputs as keyword arguments for a call, cut where they are split. Collective.

        Every rank gives the same whole inputs, of any size. Those that are split come back as
        tensors of the whole shape that hold this device's shard. Gradients come back whole.

        Raises:
            RunError: as for a call; SH0612 also where the ranks give other values.
        """
        variants = self._shardlang.variants
        return variants.compiler.build_inputs(
            variants.shard(args, kwargs, strict=False), args, kwargs
        )

    def train(self, mode: bool = True) -> ShardedModule:
        """Set the modes of all modules, in the way of the model's own `train`."""
        self._shardlang.variants.set_mode(mode)
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> tuple[list[str], list[str]]:
        """Load whole tensors, or ones that lie as the module's do, into this device's shards.

        Raises:
            RunError: SH0608, a tensor has another shape; SH0623, the tensors are to take the place
                of the module's own.
        """
        if assign:
            raise RunError(
                "SH0623",
                "`load_state_dict(assign=True)` would replace parameters that know how they lie",
                help="leave `assign` out: values are copied into the shards",
            )
        for name, mine in self.state_dict().items():
            found = list(state_dict[name].shape) if name in state_dict else list(mine.shape)
            if found != list(mine.shape):
                raise RunError(
                    "SH0608",
                    f"`{name}` is {found}; it should be {list(mine.shape)}",
                    help="give whole tensors, as the plain model's state dict has them",
                )
        self._shardlang.variants.changes.note_loaded()
        wrong: tuple[list[str], list[str]] = super().load_state_dict(state_dict, strict)
        return wrong

    def __deepcopy__(self, memo: dict[int, object]) -> ShardedModule:
        """A second model on the same programs."""
        other = ShardedModule.__new__(ShardedModule)
        memo[id(self)] = other
        standins = self._shardlang.variants.standins.copied(other, memo)
        own = {name: value for name, value in self.__dict__.items() if name != "_shardlang"}
        other.__dict__.update(copy.deepcopy(own, memo))
        mine = self._shardlang
        leaves = [leaf for leaf in mine.program.leaves if leaf.name in mine.slots]
        slots = {leaf.name: slot_of(other, leaf.name, leaf.kind) for leaf in leaves}
        other._shardlang = replace(mine, slots=slots, variants=mine.variants.on(other, standins))
        return other

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RunError(
            "SH0623",
            "a sharded module cannot be pickled: its program is bound to the running processes",
            help="save `module.state_dict()`, and make the module anew with `load()`",
        )


def held(module: ShardedModule) -> Held:
    """The program of a sharded module, its groups, and where its tensors lie."""
    return module._shardlang
