"""Scheduled steps on two gloo processes, and what they send."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shardlang.api import Program
from shardlang.compiler.driver import compile_spec
from shardlang.cost.ring import sent_bytes
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram, collectives_of, is_collective, is_start, stream_of
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step import write_step as written
from shardlang.passes.step.schedule import schedule
from shardlang.plan.collect import plan_of
from shardlang.plan.moments import Phase
from shardlang.runtime.errors import RunError
from shardlang.runtime.watch import WATCH
from shardlang.spec import load_spec_text
from tests.runtime.kinds import kind_of

MODELS = Path(__file__).with_name("layers.py")
HEAD = f'mesh {{ d = 2 }}\nmodel "{MODELS}:Layers"(count = 3, width = 6, inner = 8)\n'
BATCH = "input x : f64[4, 6] [d, _]\n"
SPECS = {
    "stored": BATCH + 'store "**" over d regather',
    "kept": BATCH + 'store "**" over d',
    "all in flight": BATCH + 'store "**" over d\nschedule { prefetch 1GiB }',
    "data": BATCH,
    "tensor": 'input x : f64[4, 6] [_, _]\nparam "layers.*.up.*" [d, ...]\n'
    'param "layers.*.down.weight" [_, d]',
}
Sent = tuple[str, str, int, int]
"""Op and stream of one call, the bytes that this rank sends, and the products made before it."""


class Boundary(TorchDispatchMode):
    """Every call of a process group that sends what the program says, in order.

    Other calls than these exchanges of two ranks compare the ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []
        self.products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        op = func.overloadpacket.__name__
        if op == "alltoall_base_":
            group = next(a for a in args if isinstance(a, torch.ScriptObject))
            stream = dist.ProcessGroup.unbox(group).group_desc.partition(" ")[2]
            self.sent.append((kind_of(op, args), stream, args[1].nbytes, self.products))
        self.products += op in ("mm", "addmm")
        return func(*args, **(kwargs or {}))


@contextmanager
def passes(*chosen: written.StepPass) -> Iterator[None]:
    """Other passes on step programs."""
    before, written.STEP_PASSES = written.STEP_PASSES, chosen
    try:
        yield
    finally:
        written.STEP_PASSES = before


def program(name: str) -> Program:
    """The compiled spec."""
    spec, found = load_spec_text(HEAD + SPECS[name], str(MODELS.with_name("case.shard")))
    assert spec is not None, found
    return Program(compile_spec(spec))


def stepped(made: Program) -> tuple[list[Tensor], list[Sent]]:
    """Loss and gradients of two steps, and what the second sends."""
    module, found = made.load("cpu"), list[Tensor]()
    x = torch.linspace(-1, 2, 24, dtype=torch.float64).view(4, 6).sin()
    for scale in (1.0, 0.5):
        module.zero_grad()
        with Boundary() as boundary:
            loss = module(**module.shard_inputs(x=x * scale))
            loss.backward()
        grads = [p.grad for p in module.parameters()]
        found += [loss.detach(), *(g for g in grads if g is not None)]
    assert WATCH.now == ""
    return found, boundary.sent


def of_text(made: LocalProgram) -> list[Sent]:
    """What the step for the loss sends, by its text; every value is of float64."""
    trained = [leaf.name for leaf in made.leaves if leaf.trainable]
    step = written.write_step(made, trained, differentiable(made))
    found, products = list[Sent](), 0
    for node in step.graph.nodes:
        products += "mm" in str(node.target) or "linear" in str(node.target)
        sent = [c for _, c in collectives_of(node) if c.sends] if is_collective(node) else []
        if sent:
            size = sum(sent_bytes(one, 8) for one in sent)
            found.append((sent[0].op, str(stream_of(node)), size, products))
    return found


def of_plan(made: Program) -> list[tuple[str, str, int]]:
    """Phase, op and bytes of every call of the plan in forward and backward, in order."""
    rows = [row for row in plan_of(made.compiled).calls() if row.phase is not Phase.UPDATE]
    assert all(row.axes == ("d",) and row.count == 1 for row in rows)
    return [(str(row.phase), row.op, row.bytes) for row in rows]


def swapped(step: StepProgram, options: StepOptions) -> StepProgram:
    """Another order of the first two starts on rank 1."""
    if os.environ["RANK"] == "1":
        first, second, *_ = filter(is_start, step.graph.nodes)
        first.prepend(second)
    return step


def other_order() -> str:
    """What is said where the ranks send in different orders."""
    try:
        with passes(*written.STEP_PASSES, swapped):
            stepped(program("all in flight"))
    except RunError as error:
        return f"{error.code}: {error.message}"
    return ""


def everything() -> dict[str, Any]:
    """Of every spec: scheduled and plain tensors, what was sent, and what text and plan say."""
    found: dict[str, Any] = {}
    for name in SPECS:
        made = program(name)
        tensors, sent = stepped(made)
        with passes(*(one for one in written.STEP_PASSES if one is not schedule)):
            plain, sent_plainly = stepped(made)
        found[name] = {
            "same": all(torch.equal(a, b) for a, b in zip(tensors, plain, strict=True)),
            "norm": sum(float(x.norm()) for x in tensors),
            "sent": sent,
            "sent plainly": sent_plainly,
            "text": of_text(made.local),
            "plan": of_plan(made),
        }
    found["other order"] = other_order()
    return found
