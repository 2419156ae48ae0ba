"""A parameter, gradient or optimizer state of the sharded model: a DTensor that knows its layout.

It has the shape of the whole tensor, and holds this device's shard. It is a `DTensor` to all that
asks, and says any layout of the language, which a DTensor of torch cannot. What its operations do
is in `tensor_ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, cast

import torch
from torch import Tensor
from torch.distributed.tensor import Placement, Replicate

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import OpOverload, unsupported
from shardlang.ir.layout import Layout
from shardlang.runtime import tensor_files
from shardlang.runtime.autograd import WithSharding
from shardlang.runtime.errors import RunError
from shardlang.runtime.narrowing import Narrowing
from shardlang.runtime.once import once
from shardlang.runtime.outside import outside
from shardlang.runtime.sharding import Sharding, alike
from shardlang.runtime.tensor_files import PlainDims, PlainMesh
from shardlang.runtime.tensor_shards import ShardedBase, shard

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem


class Sharded(ShardedBase):
    """A whole tensor of which this device holds a shard.

    Attributes:
        excused: how many writes were not by hand, but an optimizer's.
        gradient: how the gradient lies, where it does not lie as the tensor.
        operations: what they do, from `tensor_ops`.
    """

    excused: int = 0
    gradient: Sharding | None = None
    operations: ClassVar[Callable[[OpOverload, Args, Kwargs], object]]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        return cls.operations(op, tuple(args), kwargs or {})

    @outside
    def to_local(self, *, grad_placements: object = None) -> Tensor:
        """This device's shard; its gradient is this device's shard of the gradient."""
        if not (torch.is_grad_enabled() and self.requires_grad):
            return self._local_tensor
        shard: Tensor = _LocalShard.apply(self)  # type: ignore[no-untyped-call]
        return shard

    @outside
    def full_tensor(self, *, grad_placements: object = None) -> Tensor:
        """The whole tensor on every device. Collective."""
        full: Tensor = _Whole.apply(self)  # type: ignore[no-untyped-call]
        return full

    def redistribute(
        self,
        device_mesh: object = None,
        placements: Sequence[Placement] | None = None,
        **how: object,
    ) -> Sharded:
        """The whole tensor on every device, the one other place it can be moved to. Collective.

        Raises:
            RunError: SH0621, the placements ask for something else.
        """
        wanted = tuple(placements or ())
        if alike(wanted, self.placements):
            return self
        if not wanted or not all(isinstance(p, Replicate) for p in wanted):
            raise RunError(
                "SH0621",
                f"a tensor that lies as {self.sharding.layout} cannot be redistributed to {wanted}",
                help="gather it with `full_tensor()`, or state its layout in the spec",
            )
        return sharded(self.full_tensor().detach(), replicated(self.shape, self.sharding))

    @property
    def data(self) -> Tensor:
        """The tensor apart from autograd, in the same memory; writes to it do not count.

        Set to a tensor that lies alike, it takes that one's memory; set to another of its shape, it
        takes new memory. What was read as `data` before keeps its values.

        Raises:
            RunError: SH0621, on setting a tensor of another shape or dtype.
        """
        return sharded(self._local_tensor.data, self.sharding, copied=self.copied)

    @data.setter
    def data(self, value: Tensor) -> None:
        if value.shape != self.shape or value.dtype != self.dtype:
            raise RunError(
                "SH0621",
                f"`data` of a sharded {self.dtype} tensor of {list(self.shape)} cannot become a"
                f" {value.dtype} tensor of {list(value.shape)}",
                help="give a tensor of the same shape and dtype; change the model before it is"
                " compiled",
            )
        written = self.written_by_hand + 1
        if isinstance(value, Sharded) and value.sharding.same(self.sharding) and not value.copied:
            self._local_tensor = value._local_tensor.detach()
        else:
            self._local_tensor = shard(value, self.sharding).detach().clone()
        self.excused = self.version - written

    @property
    def version(self) -> int:
        """How often the shard has been written to."""
        return 0 if self._local_tensor.is_inference() else self._local_tensor._version

    @property
    def written_by_hand(self) -> int:
        """How often it has been written to by others than an optimizer."""
        return self.version - self.excused

    def share_memory_(self) -> Sharded:
        """Refused: a shard is bound to its process.

        Raises:
            RunError: SH0621.
        """
        raise RunError(
            "SH0621",
            "a sharded tensor cannot be shared with other processes",
            help="share whole values: `p.full_tensor().share_memory_()`",
        )

    def numpy(self, *, force: bool = False) -> Any:
        """The whole tensor as an array of its own, which is not written to. Collective."""
        array = self.full_tensor().numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """The whole tensor as lists. Collective."""
        return self.full_tensor().tolist()

    def __repr__(self, **how: object) -> str:  # type: ignore[override]
        return f"Sharded({self.sharding.layout}, shard={self._local_tensor})"

    def __deepcopy__(self, memo: dict[int, object]) -> Sharded:
        known = memo.get(id(self))
        if isinstance(known, Sharded):
            return known
        copy = sharded(self._local_tensor.clone(), self.sharding, self.requires_grad)
        copy.__dict__.update({k: v for k, v in self.__dict__.items() if k in _OF_PARAMETERS})
        if self.grad is not None and not hasattr(self, "_is_param"):
            copy.grad = self.grad.__deepcopy__(memo)  # type: ignore[no-untyped-call]
        memo[id(self)] = copy
        return copy

    def __copy__(self) -> Sharded:
        copy = sharded(self._local_tensor, self.sharding, self.requires_grad)
        copy.__dict__.update({k: v for k, v in self.__dict__.items() if k in _OF_PARAMETERS})
        return copy

    def storage(self) -> NoReturn:
        """Refused: a file of whole tensors cannot be made of a shard's memory.

        Raises:
            RunError: SH0621.
        """
        raise RunError(
            "SH0621",
            "the memory of a sharded tensor is asked for, and this device holds a shard alone",
            help="gather it with `full_tensor()` on every rank, or take `p.to_local()` for the"
            " shard; `torch.distributed.checkpoint.save` takes the state dict as it is",
        )

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        if self.sharding.split:
            tensor_files.note_pickled()
        values = tensor_files.values_of(self)
        flags = (self.requires_grad, hasattr(self, "_is_param"))
        return restored, (self._local_tensor.detach(), *values, flags)

    def __tensor_flatten__(self) -> NoReturn:
        """Refused: operations on sharded tensors communicate, and run as they are."""
        raise unsupported(
            "torch.compile takes no code on sharded tensors; without `fullgraph` it runs as it is"
        )

    def __create_write_items__(self, name: str, tensor: object) -> list[WriteItem]:
        return tensor_files.write_items(self, name)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return tensor_files.chunk_list(self)

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return tensor_files.chunk_at(self, index)


_OF_PARAMETERS = ("_is_param", "gradient")
"""What a copy of a parameter is too."""


def sharded(
    held: Tensor, sharding: Sharding, requires_grad: bool = False, copied: bool = False
) -> Sharded:
    """The tensor of which this is this device's shard."""
    spec = sharding.spec(held.dtype)
    made = cast(Sharded, Sharded.__new__(Sharded, held, spec, requires_grad=requires_grad))
    made.sharding, made.copied = sharding, copied
    return made


def restored(
    held: Tensor,
    mesh: PlainMesh,
    coord: tuple[int, ...],
    dims: PlainDims,
    flags: tuple[bool, bool],
) -> Sharded:
    """A pickled tensor, on the device that held it.

    Raises:
        RunError: SH0622, this process is not that device.
    """
    sharding = tensor_files.sharding_of_values(mesh, coord, dims)
    made = sharded(held.to(sharding.groups.device), sharding, flags[0])
    if flags[1]:
        made._is_param = True
    return made


torch.serialization.add_safe_globals([restored])


def replicated(shape: Sequence[int], like: Sharding) -> Sharding:
    """A sharding under which every device holds all of a tensor."""
    return Sharding(Layout.whole(shape), like.groups)


def like(held: object, shard: Tensor) -> Tensor:
    """A tensor that lies as another does, from this device's shard."""
    return sharded(shard, held.sharding) if isinstance(held, Sharded) else shard


def local(tensor: Tensor) -> Tensor:
    """This device's shard of a tensor, which is all of a plain one."""
    return tensor.to_local() if isinstance(tensor, Sharded) else tensor


class _InParts(WithSharding, Protocol):
    part: Narrowing | None


class _LocalShard(torch.autograd.Function):
    """The shard of a tensor; the gradient is a tensor that lies alike, or as `gradient` says."""

    @staticmethod
    def forward(ctx: _InParts, tensor: Sharded) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sharding, ctx.part = tensor.gradient or tensor.sharding, None
        if tensor.gradient is not None:
            wide, narrow = tensor.sharding.layout, tensor.gradient.layout
            ctx.part = Narrowing.of(wide, narrow, tensor.sharding.groups.coord)
        return tensor._local_tensor.detach()

    @staticmethod
    def backward(ctx: _InParts, grad: Tensor | None) -> Sharded | None:
        if grad is None:
            return None
        if grad.requires_grad and ctx.part is None:
            made: Sharded = _FromShard.apply(grad, ctx.sharding)  # type: ignore[no-untyped-call]
            return made
        mine = grad if ctx.part is None else ctx.part(grad)
        return sharded(own(mine), ctx.sharding)


def own(shard: Tensor) -> Tensor:
    """A gradient's shard in contiguous memory of its own, as the parameter's shard lies.

    Fused optimizers walk both as flat memory, and whatever changes gradients in place, such as
    clipping, must find each of them once. Autograd hands one gradient to both terms of a sum, and
    the loop's own tensor to `backward(gradient)`. What a collective has brought is taken as it is:
    a bucket's gradients are views of one buffer, and no two of them of the same part.
    """
    if _ARRIVED in shard.__dict__ and shard.is_contiguous():
        return shard.detach()
    return shard.detach().clone(memory_format=torch.contiguous_format)


_ARRIVED = "_shardlang_arrived"
"""The mark of a gradient that lies in memory which nobody else uses."""


def arrived(gradient: Tensor) -> Tensor:
    """Say of a gradient that nobody else uses its memory."""
    gradient.__dict__[_ARRIVED] = True
    return gradient


class _FromShard(torch.autograd.Function):
    """The tensor around a shard, for a gradient that is differentiated again."""

    @staticmethod
    def forward(ctx: WithSharding, shard: Tensor, sharding: Sharding) -> Sharded:
        ctx.sharding = sharding
        return sharded(own(shard), sharding)

    @staticmethod
    def backward(ctx: WithSharding, grad: Tensor) -> tuple[Tensor, None]:
        return shard(grad, ctx.sharding), None


class _Whole(torch.autograd.Function):
    """The whole tensor; every device has the same gradient of it, and keeps its shard."""

    @staticmethod
    def forward(ctx: WithSharding, tensor: Sharded) -> Tensor:
        ctx.sharding = tensor.sharding
        full = tensor.sharding.whole(tensor._local_tensor)
        return full.clone() if full is tensor._local_tensor else full

    @staticmethod
    @once
    def backward(ctx: WithSharding, *grads: Tensor) -> Sharded:
        return sharded(own(shard(grads[0], ctx.sharding)), ctx.sharding)
