"""Optimizers by name: of a plain model, or on this device's parts of a sharded one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shardlang.ir.optimizers import ELEMENTWISE, UpdateRule, classes, made, why_not
from shardlang.ir.precision import OWN_TYPES, Precision
from shardlang.ir.step import UpdateProgram
from shardlang.runtime.errors import RunError
from shardlang.runtime.lanes import connect, lanes
from shardlang.runtime.loss_scale import first_settings, is_mended, note_step, scale_of
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.scaled import HELP, ScaledLosses
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.step_executor import load_graph
from shardlang.runtime.tensor import sharded
from shardlang.runtime.transport import Wire
from shardlang.runtime.update import DeviceUpdate, held_here
from shardlang.runtime.watch import named
from shardlang.runtime.whole import held_shard

_FUSED = ("sgd", "adam", "adamw")
"""Those of which torch has one kernel for all of an update, on CPUs and GPUs."""


def make_optimizer(params: Mapping[str, nn.Parameter], rule: UpdateRule) -> torch.optim.Optimizer:
    """The optimizer that a rule names, for those of the parameters that are trained.

    Raises:
        RunError: SH0606, an unknown optimizer or argument, or one that needs whole parameters.
    """
    known = classes()
    if rule.name not in known or why_not(rule.name) is not None:
        why = why_not(rule.name) if rule.name in known else "torch has none of that name"
        message = f"the optimizer `{rule.name}` cannot be made: {why}"
        raise RunError("SH0606", message, help=f"write one of {list(ELEMENTWISE)}")
    trained = {name: x for name, x in params.items() if x.requires_grad}
    groups = [
        {"params": [trained[name] for name in names], **own} for names, own in rule.grouped(trained)
    ]
    try:
        return made(rule.name, groups, {**_kernels(rule, trained.values()), **rule.settings})
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            "SH0606",
            f"`{rule.name}` cannot be made: {error}",
            help="change the arguments of the `optimizer` statement",
        ) from error


def _kernels(rule: UpdateRule, params: Iterable[nn.Parameter]) -> dict[str, object]:
    """That all of an update is one kernel, where there is one and the rule states no other."""
    stated = rule.settings.keys() & {"fused", "foreach"}
    if rule.name not in _FUSED or stated:
        return {}
    return {"fused": all(_can_fuse(x) for x in params)}


def _can_fuse(x: nn.Parameter) -> bool:
    return x.is_floating_point() and x.device.type in ("cpu", "cuda")


MASTER = "master"
"""The name of a master weight among the states of a parameter."""


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimizer of torch on this device's parts of a sharded module's parameters.

    To a loop it is that optimizer: `step`, `zero_grad`, `param_groups`, the states by parameter and
    the state dict are as torch has them, the states tensors that lie as the gradients do. A step
    begins with the clipping that the spec states, and ends with the gathers of the parameters whose
    value is kept gathered.
    """

    splits_state: ClassVar[bool] = True
    """States lie as the spec says, which they would not under an optimizer of torch alone."""

    def __init__(
        self,
        module: ShardedModule,
        rule: UpdateRule,
        precision: Precision = OWN_TYPES,
    ) -> None:
        """Make the optimizer for what the module trains now. Collective.

        Args:
            precision: what the spec states of types.

        Raises:
            RunError: SH0606, an unknown optimizer or argument.
        """
        own = held(module)
        groups = self._groups = own.groups
        leaves = {x.name: (x, p) for x, p in own.tensors() if p.requires_grad}
        self._params = {name: tensor for name, (_, tensor) in leaves.items()}
        self._leaves = {name: leaf for name, (leaf, _) in leaves.items()}
        values = {name: held_shard(tensor) for name, tensor in self._params.items()}
        leaves_of = list(self._leaves.values())
        self.parts = DeviceUpdate(leaves_of, values, groups.mesh, groups.coord, precision.master)
        self.inner = make_optimizer(self.parts.named, rule)
        self._largest, self._is_made = rule.clip, False
        self._norm: Tensor | None = None
        self._gathered, self._gather = self._gathers(own.variants.declared.update)
        self._transport, self._loaded = Wire(groups.everyone()), False
        self._scaling, self._is_scaled = precision.loss_scale, False
        self._losses = ScaledLosses(self._params.values() if self._scaling is not None else ())
        settings = {**self.inner.defaults, **first_settings(self._scaling)}
        super().__init__(self._shown_groups(), settings)
        self._is_made = True

    def _gathers(
        self, update: Callable[[Collection[str]], UpdateProgram]
    ) -> tuple[Sequence[str], Callable[..., object]]:
        """What this device gathers after an update, and how: nothing of other stages. Collective.

        Devices that gather together are in the same stages. The groups of all are made by all.
        """
        whole = update(self._params.keys())
        connect(whole.graph, self._groups)
        mine = held_here(whole, self._leaves.values(), self._groups.coord)
        program = whole if mine == list(whole.names) else update(mine)
        return mine, load_graph(program.graph, lanes(whole.graph, self._groups))

    def _shown_groups(self) -> list[dict[str, object]]:
        """The groups of the inner optimizer, with the module's parameters in place of the parts."""
        shown = {id(self.parts.parts[name].tensor): x for name, x in self._params.items()}
        return [
            {**group, "params": [shown[id(x)] for x in group["params"]]}
            for group in self.inner.param_groups
        ]

    @property
    def shown(self) -> ShardedOptimizer:
        """What shows the settings and states: itself."""
        return self

    def scale(self, loss: Tensor) -> Tensor:
        """A loss for the backward, times the factor that the spec states; the step undoes it.

        `optimizer.scale(loss).backward()`, for every backward before a step.

        Raises:
            RunError: SH0643, the loss is no tensor, or scaled already.
        """
        return self._losses.scale(loss, scale_of(self.param_groups[0], self._scaling))

    def next_scale(self) -> float:
        """The factor of the loss, which the next step takes for done."""
        self._is_scaled = True
        return scale_of(self.param_groups[0], self._scaling)

    @property
    def is_mended(self) -> bool:
        """Whether a step with infinite gradients is mended by a smaller factor of the loss."""
        return is_mended(self.param_groups[0], self._scaling)

    def lies(self, param: Tensor) -> Sharding:
        """How the states of a parameter lie."""
        name = next(name for name, mine in self._params.items() if mine is param)
        return Sharding(self._leaves[name].layout, self._groups)

    def load(self) -> None:
        """Take the gradients of the parameters, and what was written to parameters and states.

        Raises:
            RunError: SH0606, a group was given other parameters; SH0643, the loss was not scaled as
                the spec states.
        """
        self._check_groups()
        given = {name: p.grad for name, p in self._params.items() if p.grad is not None}
        found = {name: held_shard(grad) for name, grad in given.items()}
        if self._scaling is not None:
            self._check_scaled(found.values())
        self.parts.load(found, scale_of(self.param_groups[0], self._scaling))
        self._loaded, self._norm = True, None

    def _check_groups(self) -> None:
        """The groups hold the parameters with which they were made."""
        if _ids(self.param_groups) != _ids(self._shown_groups()):
            raise RunError(
                "SH0606",
                "the groups of the optimizer hold other parameters than it was made with",
                help="leave the `params` of the groups as they are; call `requires_grad_(False)` on"
                " what is not to be trained, before `program.optimizer()`",
            )

    def _check_scaled(self, gradients: Iterable[Tensor]) -> None:
        """Gradients of zeros alone are those with which torch makes the states of an optimizer."""
        if self._is_scaled:
            return
        if self._losses.scaled and not self._losses.others:
            self._is_scaled = True
        elif any(bool(gradient.any()) for gradient in gradients):
            which = "one of the losses" if self._losses.scaled else "the loss"
            raise RunError(
                "SH0643",
                f"the spec states a `loss_scale`, and {which} of these gradients was not scaled",
                help=HELP,
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of the gradients, those that were taken included."""
        super().zero_grad(set_to_none)
        self.parts.drop()
        self._losses.clear()
        self._loaded = self._is_scaled = False
        self._norm = None

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The 2-norm of the gradients taken last, in float64, the same everywhere. Collective."""
        if self._norm is None:
            reduce = self._transport.all_reduce
            self._norm = named("norm of the gradients", reduce, self.parts.squares()).sqrt()
        return self._norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Change the parameters by their gradients. Collective.

        Where the spec scales the loss, gradients that are not finite change nothing but the factor.

        Args:
            closure: as torch has it: computes the loss and the gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._loaded:
            self.load()
        if self._may_step():
            self._update()
        self._loaded = self._is_scaled = False
        self._losses.clear()
        self.parts.drop()
        return loss

    def _may_step(self) -> bool:
        """Whether the parameters may be changed: where the loss is scaled, by what is finite."""
        if self._scaling is None:
            return True
        finite = self.parts.may_step(self.norm())
        if self._is_scaled:
            note_step(self.param_groups[0], self._scaling, finite)
        return finite

    def _update(self) -> None:
        if self._largest is not None:
            self.parts.clip(self.norm(), self._largest)
        self._take_states()
        self.parts.step(self.inner)
        self.parts.drop()
        self._show_states()
        self.parts.give()
        if self._gathered:
            self._gather(*self.parts.held(self._gathered))
        self.parts.settle()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the optimizer is made: it works on the parts of the module's parameters.

        Raises:
            RunError: SH0606.
        """
        if self._is_made:
            raise RunError(
                "SH0606",
                "the optimizer of a program trains the parameters of its module alone",
                help="give other parameters an optimizer of torch, and step both",
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; states keep their types, as those of master weights."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, param in zip(ids, params, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.dim():
                    self.state[param][key] = value.to(self._groups.device)

    def _take_states(self) -> None:
        """Work by the settings and states that this optimizer shows, which may have been loaded."""
        for shown, group in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({key: value for key, value in shown.items() if key != "params"})
        for name, param in self._params.items():
            if param in self.state:
                states = {key: _local(value) for key, value in self.state[param].items()}
                part = self.parts.parts[name]
                given = states.pop(MASTER, part.tensor)
                if isinstance(given, Tensor) and given.data_ptr() != part.tensor.data_ptr():
                    part.tensor.copy_(given)
                self.inner.state[part.tensor] = states
            else:
                self.inner.state.pop(self.parts.parts[name].tensor, None)

    def _show_states(self) -> None:
        """Show the states under the module's parameters, as tensors that lie as gradients do."""
        for name, param in self._params.items():
            tensor = self.parts.parts[name].tensor
            shown = self.state[param]
            for key, value in self.inner.state.get(tensor, {}).items():
                if _local(shown.get(key)) is not value:
                    shown[key] = self._around(name, value)
            if tensor.dtype != param.dtype:
                shown[MASTER] = self._around(name, tensor.detach())

    def _around(self, name: str, value: object) -> object:
        part, groups = self.parts.parts[name].tensor, self._groups
        if not isinstance(value, Tensor) or value.shape != part.shape or not value.dim():
            return value
        if groups.mesh.devices == 1:
            return value
        return sharded(value, Sharding(self._leaves[name].layout, groups))


def _ids(groups: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    """Which parameters the groups hold."""
    return [[id(x) for x in group["params"]] for group in groups]


def _local(value: object) -> object:
    return held_shard(value) if isinstance(value, Tensor) else value
