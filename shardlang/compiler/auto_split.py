"""`split auto`: the stages of a model that are most alike in work and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from shardlang.compiler.chain import OnChain, chain_of, on_chain
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.cost.held import local_bytes
from shardlang.cost.memory import leaf_bytes, state_bytes
from shardlang.cost.runs import best_runs
from shardlang.grammar.diagnostics import error
from shardlang.ir.graph import is_reshard
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info, layout_of, tensors_of
from shardlang.ir.pipeline.split import Split
from shardlang.ir.program import with_gradient
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call

_BOTH_WAYS = 3
"""The backward of an op without products touches its result and its operands about twice."""


def auto_split(compiled: Compiled, stages: int) -> Split:
    """Runs of the model's layers, cut where the most work of a stage is least.

    Raises:
        CompileError: SH0313, the model has too few places at which it can be cut.
    """
    program = compiled.program
    layers = chain_of(program.graph, compiled.captured.modules)
    chain = on_chain(program, layers)
    found = best_runs(
        _work(compiled, chain, len(layers)),
        _memory(compiled, chain, len(layers)),
        _crossing(program.graph, chain, len(layers)),
        stages,
        chain.together,
    )
    if found is None:
        raise _too_few(compiled, len(layers) - len(chain.together), stages)
    starts = [sum(begin <= i for begin in found) - 1 for i in range(len(layers))]
    return Split(dict(zip(layers, starts, strict=True)), stages)


def _too_few(compiled: Compiled, parts: int, stages: int) -> CompileError:
    stated = compiled.spec.pipeline
    assert stated is not None, "the spec states a pipeline"
    what = "the model has no list of layers" if parts < 1 else f"{parts} layers are too few"
    finding = error(
        "SH0313",
        f"{what} for {stages} stages" if parts > 0 else what,
        stated.split.span,
        help="make the axis of the pipeline smaller, or list the stages: `split { stage ... }`",
    )
    return CompileError([finding])


def _work(compiled: Compiled, chain: OnChain, count: int) -> list[int]:
    """Operations of every layer, forward and backward, on the device with the largest parts.

    Those that the rules count for products; elsewhere one for each byte that is read or written.
    """
    reached = with_gradient(compiled.program)
    work = [0] * count
    for node in compiled.program.graph.nodes:
        if node.op == "call_function" and node not in chain.anywhere:
            work[chain.layer_of[node]] += _operations(node, node in reached)
    return work


def _operations(node: fx.Node, backward: bool) -> int:
    sharding = info(node).sharding
    if sharding is not None and sharding.rule.products:
        forward = sharding.rule.flops()
        both = forward + (_back(node, sharding) if backward else 0)
        return sharding.flops() * both // max(1, forward)
    if sharding is None or sharding.rule.traits.is_view or is_reshard(node):
        return 0
    touched = sum(_bytes(x) for x in (node, *node.all_input_nodes))
    return touched * (_BOTH_WAYS if backward else 1)


def _back(node: fx.Node, sharding: Sharding) -> int:
    """Operations of the backward of an op, of the whole op."""
    operands = enumerate(Call(node).operands)
    wanted = {i for i, operand in operands if info(operand).differentiable}
    return sharding.rule.backward_flops(wanted)


def _bytes(node: fx.Node) -> int:
    """Bytes of a value on the device with the largest part; none of what is no single tensor."""
    tensors = tensors_of(node)
    return local_bytes(layout_of(node), tensors[0].dtype) if len(tensors) == 1 else 0


def _memory(compiled: Compiled, chain: OnChain, count: int) -> list[int]:
    """Bytes of the parameters of every layer, their gradients and the optimizer's states.

    One that several layers read, a tied one, lies in each, and its states in the first.
    """
    program, memory = compiled.program, [0] * count
    nodes: Mapping[str, fx.Node] = {n.name: n for n in program.graph.find_nodes(op="placeholder")}
    coord = next(iter(program.mesh.coords()))
    for leaf in program.leaves:
        if leaf.kind is not LeafKind.PARAM:
            continue
        held, state = leaf_bytes([leaf], coord), 0
        if leaf.trainable:
            held *= 2
            state = state_bytes([leaf], coord, compiled.rule, program.step.precision.master)
        users = (user for user in nodes[leaf.node].users if user in chain.layer_of)
        readers = sorted({chain.layer_of[user] for user in users}) or [0]
        memory[readers[0]] += state
        for layer in readers:
            memory[layer] += held
    return memory


def _crossing(graph: fx.Graph, chain: OnChain, count: int) -> Sequence[int]:
    """Bytes of the values that are made before a cut and read behind it, for every cut."""
    across = [0] * count
    for node in graph.nodes:
        if node.op != "call_function" or node in chain.anywhere:
            continue
        last = max(
            (chain.layer_of[user] for user in node.users if user in chain.layer_of), default=0
        )
        for cut in range(chain.layer_of[node] + 1, last + 1):
            across[cut] += _bytes(node)
    return across
