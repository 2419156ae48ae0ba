"""What the tests of own loops run on every rank."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apart
import more
import net
import outside
import page
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.nn.utils import parametrizations

import shardlang
from shardlang.runtime.errors import RunError
from tests.runtime.prepared import prepare_step

HERE = Path(__file__).parent


@functools.cache
def program(name: str) -> shardlang.Program:
    """A spec beside this file."""
    return shardlang.compile(HERE / f"{name}.shard")


def prepare() -> None:
    """Compile what the ranks load."""
    for name in os.environ["SPECS"].split():
        prepare_step(program(name))


def load(name: str) -> Any:
    """A sharded module of a spec beside this file."""
    return program(name).load(seed=1)


def twin(module: Any) -> nn.Module:
    """The plain model with the same weights."""
    plain = net.build()
    plain.load_state_dict({name: x.full_tensor() for name, x in module.state_dict().items()})
    return plain


def batches() -> list[dict[str, Tensor]]:
    """Whole batches."""
    made = torch.Generator().manual_seed(0)
    return [
        {name: torch.randint(0, 11, (6, 5), generator=made) for name in ("ids", "labels")}
        for _ in range(4)
    ]


def everything() -> dict[str, Any]:
    """All results, by name."""
    folder, whole = Path(os.environ["SCRATCH"]), batches()
    modules, mine, plain = _loaded(whole)
    found = _trained_by_hand(modules, mine, plain, whole, folder)
    found["infinity"] = _infinity(modules[0], mine)
    found["elsewhere"] = _elsewhere(folder)
    found["saved"] = _saved(modules[0], mine[0], folder / "saved")
    found["changed"] = _changed(modules[0], mine[0], whole[0])
    found["refused"] = _refused(modules[0], mine[0])
    found["apart"] = apart.said(modules[0], mine[0])
    found["rounded"] = apart.rounded_apart(modules[0], mine[0])
    found["comparisons"] = apart.comparisons(modules[0], mine[0])
    found["more"] = more.gaps(modules[0], twin(modules[0]), whole)
    found["memory"] = more.memory(modules[0], mine[0])
    alone = folder / f"hidden{dist.get_rank()}"
    alone.mkdir()
    found["hooked"] = more.hidden(alone, dist.get_world_size())
    hook = more.said(modules[0], mine[0], "logits", lambda x: x.register_hook(torch.tanh))
    found["hooked"]["split"] = hook
    return found


def on_two_axes() -> dict[str, Any]:
    """What may depend on how many axes split a tensor, by name."""
    folder, whole = Path(os.environ["SCRATCH"]), batches()
    modules, mine, plain = _loaded(whole)
    return _trained_by_hand(modules, mine, plain, whole, folder)


def _loaded(whole: list[Any]) -> tuple[list[Any], list[Any], nn.Module]:
    """The module of every spec, the first one's shards of batches, and its plain model."""
    modules = [load(name) for name in os.environ["SPECS"].split()]
    return modules, [modules[0].shard_inputs(**batch) for batch in whole], twin(modules[0])


def _trained_by_hand(
    modules: list[Any], mine: list[Any], plain: nn.Module, whole: list[Any], folder: Path
) -> dict[str, Any]:
    """The blocks of the page, optimizers, checkpoints, replicas, losses outside, broadcasts."""
    found: dict[str, Any] = {"page": [], "names": _names(modules[0], plain)}
    for number, block in enumerate(page.blocks()):
        found["page"].append(_block(block, modules[0], plain, mine, whole, folder / str(number)))
    found["optimizers"] = _optimizers(modules[0], plain, mine, whole)
    found["meshes"] = _meshes(modules, whole, folder / "meshes")
    found["replicas"] = _replicas(modules[0], mine)
    found["outside"] = outside.all_gaps(modules, whole, twin, folder / f"cached{dist.get_rank()}")
    found["broadcast"] = [_broadcast(module, whole) for module in modules]
    return found


def _block(
    block: str, module: Any, plain: nn.Module, mine: list[Any], whole: list[Any], folder: Path
) -> Any:
    refused = page.REFUSED.match(block)
    if refused is None:
        sharded = page.run(block, module, mine, folder / "sharded")
        return page.gap(sharded, page.run(block, plain, whole, folder / "plain"))
    try:
        page.run(block, module, mine, folder)
    except RunError as error:
        return error.code
    return None


def _names(module: Any, plain: nn.Module) -> dict[str, bool]:
    mine, theirs = dict(module.named_parameters()), dict(plain.named_parameters())
    return {
        "order": list(mine) == list(theirs)
        and list(module.state_dict()) == list(plain.state_dict()),
        "shapes": [p.shape for p in mine.values()] == [p.shape for p in theirs.values()],
        "tied": module.head.weight is module.embed.weight,
        "reachable": module.groups.weight is mine["groups.weight"]
        and module.program.bias is mine["program.bias"],
    }


KINDS: dict[str, Any] = {
    "Adagrad": {"lr": 0.1}, "Adam": {"foreach": True, "amsgrad": True}, "NAdam": {},
    "RMSprop": {}, "Rprop": {}, "SGD": {"lr": 0.1, "nesterov": True, "momentum": 0.9}, "Muon": {},
}  # fmt: skip


def _optimizers(
    module: Any, plain: nn.Module, mine: list[Any], whole: list[Any]
) -> dict[str, float]:
    return {
        kind: page.gap(_trained(kind, module, mine), _trained(kind, plain, whole)) for kind in KINDS
    }


def _trained(kind: str, model: nn.Module, given: list[Any]) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    trained = [p for p in model.parameters() if p.dim() == 2 or kind != "Muon"]
    optimizer = getattr(torch.optim, kind)(trained, **KINDS[kind])
    for batch in given:
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(page.flat(model.state_dict()))


def _step(model: nn.Module, optimizer: Any, batch: Any) -> None:
    model(**batch)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()


def _adam(model: nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def _meshes(modules: list[Any], whole: list[Any], folder: Path) -> dict[str, float]:
    """A checkpoint of the first mesh, read on every other and by the plain model."""
    first = copy.deepcopy(modules[0])
    optimizer = _adam(first)
    _step(first, optimizer, first.shard_inputs(**whole[0]))
    weights, states = get_state_dict(first, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
    _step(first, optimizer, first.shard_inputs(**whole[1]))
    wanted = dict(page.flat(first.state_dict()))
    found = {}
    for number, model in enumerate([*modules, net.build()]):
        model = copy.deepcopy(model)
        optimizer = _adam(model)
        weights, states = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": states}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        cut = getattr(model, "shard_inputs", dict)
        _step(model, optimizer, cut(**whole[1]))
        found[str(number)] = page.gap(dict(page.flat(model.state_dict())), wanted)
    return found


def _replicas(module: Any, mine: list[Any]) -> dict[str, Tensor]:
    """The shards of whole parameters after steps that clip, to compare bit by bit."""
    model = copy.deepcopy(module)
    optimizer = _adam(model)
    for batch in mine:
        model(**batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    named = model.named_parameters()
    return {name: p._local_tensor.detach() for name, p in named if not p.sharding.split}


def _infinity(module: Any, mine: list[Any]) -> tuple[float, bool]:
    """An infinity in one device's gradient: the new scale, and whether nothing has changed."""
    model = copy.deepcopy(module)
    optimizer, scaler = _adam(model), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(**mine[0])["loss"]).backward()
    if dist.get_rank() == 0:
        model.get_parameter("groups.weight").grad.to_local()[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    same = page.gap(dict(page.flat(model.state_dict())), dict(page.flat(module.state_dict())))
    # The buffer of the model counts its calls, so it alone differs.
    weights = {n: x for n, x in page.flat(dict(model.named_parameters()))}
    before = {n: x for n, x in page.flat(dict(module.named_parameters()))}
    return scaler.get_scale(), same < 10 and page.gap(weights, before) == 0.0


def _elsewhere(folder: Path) -> str | None:
    """The code of reading another rank's file of the page's last checkpoint."""
    other = (dist.get_rank() + 1) % dist.get_world_size()
    dist.barrier()
    found = next(folder.glob(f"*/sharded/{other}.pt"))
    try:
        torch.load(found)
    except RunError as error:
        return error.code
    return None


def _saved(module: Any, batch: Any, folder: Path) -> dict[str, Any]:
    """What is said where one rank saves its shards alone, and where all do."""
    rank = dist.get_rank()
    folder.mkdir(parents=True, exist_ok=True)
    state = module.state_dict()
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        copies = copy.deepcopy(state), copy.copy(state), [copy.copy(x) for x in state.values()]
        dcp.save({"model": state}, checkpoint_id=folder / "all")
        found["silent"] = not [w for w in said if "shard of this device" in str(w.message)]
        found["copied"] = all(
            torch.equal(mine.to_local(), its.to_local()) and mine.sharding is its.sharding
            for mine, its in zip(copies[2], state.values(), strict=True)
        )
        found["before"] = _said_by(lambda: module(**batch))
        if rank == 0:
            torch.save(state, folder / "alone.pt")
        spoken = [w for w in said if "shard of this device" in str(w.message)]
        found["spoken"] = bool(spoken) == (rank == 0)
        found["alone"] = _said_by(lambda: module(**batch))
        found["after"] = _said_by(lambda: module(**batch))
        torch.save(state, folder / f"own{rank}.pt")
        found["each"] = _said_by(lambda: module(**batch))
        if rank == 0:
            dcp.save({"model": state}, checkpoint_id=folder / "half", no_dist=True)
        found["half"] = _said_by(lambda: module(**batch))
    found["safetensors"] = _said_by(lambda: save_file(dict(state), folder / f"{rank}.safetensors"))
    return found


def _said_by(call: Callable[[], Any]) -> tuple[str, str]:
    """The code and the text of a refusal."""
    try:
        call()
    except RunError as error:
        return error.code, f"{error.message} | {error.help}"
    return "", ""


def _broadcast(module: Any, whole: list[Any]) -> Any:
    """How far a state broadcast from rank 0 lies off, or the code of the refusal."""
    model = copy.deepcopy(module)
    full = {name: x.full_tensor() * 0.5 for name, x in model.state_dict().items()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    given = dict(full) if dist.get_rank() == 0 else {}
    try:
        set_model_state_dict(model, given, options=options)
    except RunError as error:
        return error.code
    return page.gap(dict(page.flat(model.state_dict())), dict(page.flat(full)))


def _changed(module: Any, mine: Any, whole: Any) -> dict[str, float | bool]:
    """What a loop may do to the model's modules, against the plain model."""

    def init(part: nn.Module) -> None:
        if type(part) is nn.Linear:
            with torch.no_grad():
                part.weight.copy_(torch.arange(part.weight.numel()).view(part.weight.shape).sin())

    model = copy.deepcopy(module)
    plain, found = twin(model), {}
    for one, batch in ((model, mine), (plain, whole)):
        one.apply(init)
        one.norm.requires_grad_(False)
        one.seen = one.seen * 0.5
        _step(one, torch.optim.SGD(one.parameters(), lr=0.1), batch)
    mine_, theirs = (dict(page.flat(one.state_dict())) for one in (model, plain))
    found["initialized by class"] = page.gap(mine_, theirs)
    model(**mine)["loss"].backward()
    copied = copy.deepcopy(model)
    found["copied without gradients"] = all(p.grad is None for p in copied.parameters())
    return found


def _refused(module: Any, mine: Any) -> dict[str, tuple[str, str]]:
    """The codes and words of what a loop may not do."""

    def untie(m: Any) -> None:
        m.head.weight = nn.Parameter(m.head.weight.detach().clone())

    def gather(m: Any) -> None:
        dist.all_gather([torch.empty_like(m.up.weight)] * dist.get_world_size(), m.up.weight)

    def dual(m: Any) -> None:
        with torch.autograd.forward_ad.dual_level():
            ones = torch.ones_like(m.norm.weight)
            made = torch.autograd.forward_ad.make_dual(m.norm.weight.detach(), ones)
            torch.func.functional_call(m, {"norm.weight": made}, (), mine)

    def transformed(m: Any) -> None:
        def loss(params: Any) -> Any:
            return torch.func.functional_call(m, params, (), mine)["loss"]

        torch.func.grad(loss)({"norm.weight": m.norm.weight.detach()})

    acts: dict[str, Any] = {
        "untied": untie,
        "whole": lambda m: setattr(m.up, "weight", nn.Parameter(torch.ones(m.up.weight.shape))),
        "buffer": lambda m: setattr(m, "seen", torch.ones(5)),
        "replaced": lambda m: setattr(m, "norm", nn.Identity()),
        "setting": lambda m: setattr(m.norm, "eps", 0.5),
        "parametrized": lambda m: parametrizations.weight_norm(m.up),
        "hook": lambda m: m.up.register_forward_hook(print),
        "part": lambda m: m.up(torch.ones(2, 12)),
        "shared": lambda m: m.share_memory(),
        "reduced": lambda m: dist.all_reduce(m.up.weight.detach()),
        "broadcast": lambda m: dist.broadcast(m.up.weight.data, 0),
        "gathered": gather,
        "dual": dual,
        "transformed": transformed,
        "orthogonal": lambda m: nn.init.orthogonal_(m.up.weight),
    }  # fmt: skip
    return {name: _refusal(act, copy.deepcopy(module), mine) for name, act in acts.items()}


def _refusal(act: Any, model: Any, mine: Any) -> tuple[str, str]:
    try:
        act(model)
        model(**mine)
    except RunError as error:
        return error.code, f"{error.message} | {error.help}"
    return "", "nothing was raised"
