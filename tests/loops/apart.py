"""What a loop does on one rank alone: the next call says so on all."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shardlang.runtime import variants
from shardlang.runtime.errors import RunError

Act = Callable[[Any, Callable[[], None], bool], None]


def _load(m: Any, step: Callable[[], None], mine: bool) -> None:
    """The third of three loads, which is no time to compare for any other reason."""
    for _ in range(2):
        m.load_state_dict(m.state_dict())
        step()
    state = {name: value.clone() for name, value in m.state_dict().items()}
    state["norm.weight"] *= 2 if mine else 1
    m.load_state_dict(state)


def _by_hand(m: Any, step: Callable[[], None], mine: bool) -> None:
    with torch.no_grad():
        m.norm.bias.add_(0.5 * mine)


def _data(m: Any, step: Callable[[], None], mine: bool) -> None:
    m.norm.weight.data = torch.full((12,), 1.0 + mine, dtype=torch.float64)


def _initialized(m: Any, step: Callable[[], None], mine: bool) -> None:
    torch.manual_seed(int(mine))
    nn.init.normal_(m.norm.weight)


def _rate(m: Any, step: Callable[[], None], mine: bool) -> None:
    step()
    torch.optim.SGD(m.parameters(), lr=0.1 + 0.1 * mine).step()


def _stepped(m: Any, step: Callable[[], None], mine: bool) -> None:
    step()
    if not mine:
        torch.optim.SGD(m.parameters(), lr=0.1).step()


def _states(m: Any, step: Callable[[], None], mine: bool) -> None:
    optimizer = torch.optim.SGD([m.norm.weight], lr=0.1, momentum=0.9)
    step()
    optimizer.step()
    states = optimizer.state_dict()
    states["state"][0]["momentum_buffer"] = states["state"][0]["momentum_buffer"] * (1 + mine)
    optimizer.load_state_dict(states)
    optimizer.step()


ACTS: dict[str, Act] = {
    "loaded": _load, "by hand": _by_hand, "data": _data, "initialized": _initialized,
    "rate": _rate, "stepped": _stepped, "states": _states,
}  # fmt: skip


def _buffer(m: Any, step: Callable[[], None], mine: bool) -> None:
    m.seen.add_(0.5 * mine)


def _gradients(m: Any, step: Callable[[], None], mine: bool) -> None:
    """Noise on the gradients: it shows at the second call."""
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(4):
        step()
        m.norm.weight.grad.add_(0.1 * mine)
        optimizer.step()


FIRST: dict[str, Act] = {"buffer": _buffer, "gradients": _gradients}
"""What is found at the calls that compare in any case."""


def said(module: Any, batch: Any) -> dict[str, tuple[str, str]]:
    """What is said of each, in the first calls and in later ones."""
    found = {name: _said(act, module, batch, 0) for name, act in {**ACTS, **FIRST}.items()}
    return found | {f"{name}, later": _said(act, module, batch, 5) for name, act in ACTS.items()}


def _said(act: Act, module: Any, batch: Any, calls: int) -> tuple[str, str]:
    torch.manual_seed(0)
    model = copy.deepcopy(module)

    def step() -> None:
        model(**batch)["loss"].backward()

    for _ in range(calls):
        step()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            act(model, step, dist.get_rank() == 1)
            step()
        except RunError as error:
            return error.code, f"{error.message} | {error.help}"
    said = [str(one.message) for one in seen if "more than rounding" in str(one.message)]
    return ("warning", said[0]) if said else ("", "nothing was said")


def rounded_apart(module: Any, batch: Any) -> tuple[str, str]:
    """What is said of replicas that differ in their last digits."""

    def act(m: Any, step: Callable[[], None], mine: bool) -> None:
        with torch.no_grad():
            m.norm.weight.mul_(1 + 1e-15 * mine)

    return _said(act, module, batch, 0)


def comparisons(module: Any, batch: Any) -> int:
    """How often 20 steps of an optimizer compare the replicas."""
    model, before, count = copy.deepcopy(module), variants.beyond_rounding, 0

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return before(*args)

    variants.beyond_rounding = counted
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        model(**batch)["loss"].backward()
        optimizer.step()
    variants.beyond_rounding = before
    return count
