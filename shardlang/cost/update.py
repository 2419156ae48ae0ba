"""What an update takes of a device's memory: what it keeps between steps, and what it is done with.

The optimizer's part is the code of the run (`runtime/update.py`) on fake tensors that lie as those
of the device do; the gathers behind it are gone through statement by statement, as the step is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, fx

from shardlang.cost.composition import Kind, kind_within, over_time
from shardlang.cost.effects import Held, TensorType, Value
from shardlang.cost.half import part_of
from shardlang.cost.heap import Heap
from shardlang.cost.memory import state_bytes
from shardlang.cost.meter import Meter
from shardlang.cost.step_calls import Site, StepCalls
from shardlang.ir.compat import FakeTensorMode
from shardlang.ir.graph import is_item
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Coord, Mesh
from shardlang.ir.node import info, layout_of, tensor_of
from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.precision import Precision
from shardlang.ir.step import UpdateProgram, is_collective, is_wait
from shardlang.runtime.loss_scale import scale_of
from shardlang.runtime.optim import make_optimizer
from shardlang.runtime.transport import Wire
from shardlang.runtime.update import DeviceUpdate, held_here


@dataclass(frozen=True, slots=True)
class UpdateLine:
    """A statement of an update.

    Attributes:
        name: `norm`, `clip` or `step`; else that of a node of the gathers.
        module: the module to which it belongs; empty for the model itself.
        held: the most bytes that it holds, by kind, beside all that lies there before and behind
            an update.
    """

    name: str
    module: str
    held: Mapping[Kind, int]

    @property
    def bytes(self) -> int:
        """Those of all kinds."""
        return sum(self.held.values())


class UpdateCost:
    """An update of some parameters, on any device."""

    def __init__(
        self,
        mesh: Mesh,
        leaves: Sequence[Leaf],
        rule: UpdateRule,
        precision: Precision,
        gathers: Callable[[Collection[str]], UpdateProgram],
        takes_norm: bool,
    ) -> None:
        """Note what is updated.

        Args:
            leaves: the parameters that get a gradient.
            gathers: what is run behind the optimizer for some of them, by name.
            takes_norm: whether the norm of all gradients is made first.
        """
        self.mesh, self.leaves, self.rule, self.precision = mesh, leaves, rule, precision
        self.gathers, self.takes_norm = gathers, takes_norm
        self._known: dict[object, tuple[UpdateLine, ...]] = {}

    def state_bytes(self, coord: Coord) -> int:
        """What lies on a device between steps for updates alone: states, and master weights."""
        return state_bytes(self.leaves, coord, self.rule, self.precision.master)

    def peak(self, heap: Heap, coord: Coord) -> int:
        """The most bytes of a whole step on a device, states included.

        Args:
            heap: forward and backward.
        """
        most = max((line.bytes for line in self.lines(coord, heap.gradient_types)), default=0)
        return max(heap.peak, heap.live + most) + self.state_bytes(coord)

    def lines(self, coord: Coord, gradients: Mapping[str, TensorType]) -> tuple[UpdateLine, ...]:
        """The statements of the update on a device, from its second step on.

        Args:
            gradients: how they lie on the device, by the name of the parameter.
        """
        key = tuple(coord.items()), tuple(gradients.items())
        if key not in self._known:
            with ThreadPoolExecutor(1) as thread:
                self._known[key] = thread.submit(self._lines, coord, gradients).result()
        return self._known[key]

    def _lines(self, coord: Coord, gradients: Mapping[str, TensorType]) -> tuple[UpdateLine, ...]:
        """In a thread of its own, away from the caller's modes of torch."""
        return tuple(_OnDevice(self, coord, gradients).lines()) if self.leaves else ()


class _OnDevice:
    """One device's parts of parameters, as fake tensors, and the optimizer that works on them."""

    def __init__(self, cost: UpdateCost, coord: Coord, gradients: Mapping[str, TensorType]) -> None:
        self.cost, self.coord = cost, coord
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.values = {
                leaf.name: torch.empty(leaf.at_rest.local_shape(coord), dtype=leaf.dtype)
                for leaf in cost.leaves
            }
            self.given = {x: of.made() for x, of in gradients.items() if x in self.values}
        master = cost.precision.master
        self.parts = DeviceUpdate(cost.leaves, self.values, cost.mesh, coord, master)
        self.inner = make_optimizer(self.parts.named, cost.rule)
        self.norm: Tensor | None = None

    @torch.no_grad()
    def lines(self) -> list[UpdateLine]:
        """All statements. The first update makes the states, the second one counts."""
        cost, coord, made = self.cost, self.coord, list[UpdateLine]()
        with Meter() as meter:
            meter.count(chain(self.values.values(), self.given.values(), self.parts.tensors))
            self._load()
            self._step()
            start = meter.peak = meter.live
            for name in self._steps():
                made.append(UpdateLine(name, "", {Kind.TEMPORARIES: meter.peak - start}))
                meter.peak = meter.live
            names = held_here(cost.gathers([x.name for x in cost.leaves]), cost.leaves, coord)
            behind = meter.live - start
            held = self.parts.held(names)
            narrowed = meter.live - start - behind
            del held
        if not names:
            return made
        gathers = _Gathers(cost.gathers(names), coord, behind, narrowed)
        return made + list(gathers.lines())

    def _steps(self) -> Iterator[str]:
        """What an optimizer does before the gathers, each name behind what it stands for."""
        cost, group = self.cost, Site(self.cost.mesh, self.coord, "gloo").of(self.cost.mesh.axes)
        self._load()
        if cost.takes_norm:
            self.norm = Wire(group).all_reduce(self.parts.squares()).sqrt()
            yield "norm"
        if cost.rule.clip is not None and self.norm is not None:
            self.parts.clip(self.norm, cost.rule.clip)
            yield "clip"
        self._step()
        yield "step"

    def _step(self) -> None:
        self.parts.step(self.inner)
        self.parts.drop()
        self.parts.give()

    def _load(self) -> None:
        self.parts.load(self.given, scale_of({}, self.cost.precision.loss_scale))


class _Gathers(Heap):
    """The gathers of new values, beside what lies there through all of them."""

    def __init__(self, program: UpdateProgram, coord: Coord, norm: int, narrowed: int) -> None:
        """Note the bytes of the norm, and of parts in the types of their values."""
        super().__init__()
        self.graph, self._beside = program.graph, norm + narrowed
        calls = StepCalls(program.mesh, coord, "gloo")
        half = part_of(program.graph.nodes, calls)
        values: dict[fx.Node, Value] = {}
        for node in program.graph.find_nodes(op="placeholder"):
            of = TensorType.dense(layout_of(node).local_shape(coord), tensor_of(node).dtype)
            values[node] = Held(of, (self.new(0, node, -1),))
            self.hold(values[node])
        self.run_half(calls, half, values, ())

    def lines(self) -> Iterator[UpdateLine]:
        """One for each statement."""
        kinds = [self._kind_of(storage.maker) for storage in self.storages]
        for statement, held in zip(self.statements, over_time(self, kinds), strict=True):
            assert statement.node is not None, "nothing is copied here"
            all_of = Counter({Kind.TEMPORARIES: self._beside}) + Counter(held)
            yield UpdateLine(statement.node.name, info(statement.node).module, all_of)

    def _kind_of(self, maker: fx.Node | None) -> Kind:
        sent = maker is not None and (is_collective(maker) or is_wait(maker) or is_item(maker))
        return Kind.GATHERED if sent else kind_within(maker)
