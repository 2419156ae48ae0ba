"""Recurrent layers and cells: the batch is carried, time and hidden units stay whole."""

from __future__ import annotations

import torch

from shardlang.rules.call import Call
from shardlang.rules.registry import rule
from shardlang.rules.shapes import signature
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _layer(call: Call) -> str:
    """Input and output `t n i` or `n t i`, states `layers n h`; dropout needs the whole batch."""
    batch = "n!" if _draws(call) else "n"
    order = [batch, "t!"] if call.flag("batch_first") else ["t!", batch]
    operands = [[*order, "i!"]]
    for number, slot in enumerate(call.slots[1:]):
        if slot.name == "hx":
            operands.append([f"l{number}!", batch, f"h{number}!"])
        else:
            operands.append([f"p{number}d{d}!" for d in range(len(call.shapes[number + 1]))])
    states = [[f"m{i}!", batch, f"k{i}!"] for i in range(len(call.results) - 1)]
    return signature(map(tensor, operands), map(tensor, [[*order, "o!"], *states]))


def _draws(call: Call) -> bool:
    return call.number("dropout") != 0 and call.flag("train")


rule(
    aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input,
    spec=_layer, passes=False, random=_draws,
)  # fmt: skip


def _cell(call: Call) -> str:
    """The kernels take weights for all hidden units at once."""
    operands = []
    for i, (slot, shape) in enumerate(zip(call.slots, call.shapes, strict=True)):
        carried = slot.name in ("input", "hx") and len(shape) == 2
        dims = [f"x{i}d{d}!" for d in range(len(shape))]
        operands.append(tensor(["n", dims[1]] if carried else dims))
    results = ["n", "y!"] if len(call.out) == 2 else ["y!"]
    return signature(operands, [tensor(results)] * len(call.results))


rule(
    aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell,
    spec=_cell, passes=False,
)  # fmt: skip
