"""The loss of a model: which result it is, and whether anything can be trained by it."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from shardlang.bind import Binding
from shardlang.capture import Captured
from shardlang.grammar.diagnostics import Diagnostic, error, join_words, quote
from shardlang.ir.arguments import tensors_in
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import info, tensor_of
from shardlang.rules.registry import find
from shardlang.spec.types import Spec


def loss_name(binding: Binding, captured: Captured) -> str | None:
    """The loss: as stated, else the output called `loss`, else the only scalar with a gradient."""
    if binding.loss is not None:
        return binding.loss
    scalars = _scalars(captured)
    if "loss" in scalars:
        return "loss"
    carriers = _carriers(captured)
    names = [name for name, node in scalars.items() if node in carriers]
    return names[0] if len(names) == 1 else None


def loss_finding(spec: Spec, name: str | None, captured: Captured) -> Diagnostic | None:
    """The error of a loss from which no gradient reaches a parameter, though some require one."""
    if name is None or not any(leaf.trainable for leaf in captured.leaves):
        return None
    if output_nodes(captured)[name] in _carriers(captured):
        return None
    return error(
        "SH0511",
        f"no gradient flows from the loss `{name}` to any parameter",
        spec.loss.span if spec.loss is not None else spec.model.span,
        help="name the output that is the loss with `loss`, and take `detach` and `no_grad` off the"
        ' way to it; a model that is not trained has the argument `mode = "eval"`',
    )


def unnamed_loss(spec: Spec, name: str | None, captured: Captured) -> Diagnostic | None:
    """A warning where several outputs may be the loss, so that none is taken for it."""
    carriers = _carriers(captured)
    names = [one for one, node in _scalars(captured).items() if node in carriers]
    if name is not None or len(names) < 2:
        return None
    found = error(
        "SH0513",
        f"which output is the loss is not known: {join_words(quote(names), 'and')} may be",
        spec.model.span,
        help=f"name it, such as `loss {names[0]}`; without one `shardlang run` trains nothing",
    )
    return replace(found, severity="warning")


def output_nodes(captured: Captured) -> dict[str, fx.Node]:
    """The node of every output that is a tensor."""
    nodes = captured.graph.output_node().args[0]
    assert isinstance(nodes, (tuple, list))
    pairs = zip(captured.results, nodes, strict=True)
    return {r.name: n for r, n in pairs if r.kind is ResultKind.OUTPUT and isinstance(n, fx.Node)}


def _scalars(captured: Captured) -> dict[str, fx.Node]:
    """The real outputs without dims."""
    return {
        name: node
        for name, node in output_nodes(captured).items()
        if tensor_of(node).is_floating_point() and not tensor_of(node).shape
    }


def _carriers(captured: Captured) -> set[fx.Node]:
    """Values through which a gradient flows to a trainable parameter."""
    trainable = {leaf.node for leaf in captured.leaves if leaf.trainable}
    found: set[fx.Node] = set()
    for node in captured.graph.nodes:
        if node.name in trainable or (_passes_on(node) and found & set(node.all_input_nodes)):
            found.add(node)
    return found


def _passes_on(node: fx.Node) -> bool:
    """Whether an op hands gradients on to its operands."""
    if node.op != "call_function":
        return False
    known = find(node.target)
    values = tensors_in(info(node).value)
    real = any(v.is_floating_point() or v.is_complex() for v in values)
    return real and (known is None or not known.detached)
