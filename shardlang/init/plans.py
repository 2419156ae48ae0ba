"""The parallel plans that Hugging Face models bring along: which dim of which tensor they split.

Styles have had several names, and some say how a module's values lie besides its parameters; all
names that transformers has registered since 4.45 are in `STYLES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from shardlang.grammar.patterns import PatternError, compile_pattern


@dataclass(frozen=True, slots=True)
class Style:
    """What a style says.

    Attributes:
        splits: `out` (a linear layer's rows), `in` (its columns), `rows` or `columns` of a table,
            `experts` (the first dim), `sequence` (of what the module returns), or `nothing`.
        firm: the dim is meant, and not a way around a view that the author could not split.
    """

    splits: str
    firm: bool = True


STYLES: dict[str, Style] = {
    "colwise": Style("out"),
    "local_colwise": Style("out"),
    "packed_colwise": Style("out"),
    "local_packed_colwise": Style("out"),
    "colwise_rep": Style("out", firm=False),
    "colwise_gather_output": Style("out", firm=False),
    "rowwise": Style("in"),
    "local_rowwise": Style("in"),
    "packed_rowwise": Style("in"),
    "local_packed_rowwise": Style("in"),
    "rowwise_rep": Style("in", firm=False),
    "rowwise_split_input": Style("in", firm=False),
    "embedding_rowwise": Style("rows"),
    "vocab_parallel_rowwise": Style("rows"),
    "embedding_colwise": Style("columns", firm=False),
    "grouped_gemm": Style("experts"),
    "sequence_parallel": Style("sequence"),
    "replicate": Style("nothing"),
    "replicated_with_grad_allreduce": Style("nothing"),
    "mla_kv_a_proj": Style("nothing"),
    "all_reduce": Style("nothing"),
    "local": Style("nothing"),
    "local_params": Style("nothing"),
    "isolated": Style("nothing"),
    "gather": Style("nothing"),
    "ep_router": Style("nothing"),
    "ep_dispatch_experts": Style("nothing"),
    "moe_tp_experts": Style("nothing"),
    "moe_identity_expert": Style("nothing"),
}
"""Every style by name. `nothing` covers what needs no statement: gradients of replicated parameters
are summed, and the parts of experts combined, wherever the mathematics asks for it."""


@dataclass(slots=True)
class Wishes:
    """What the plans of a model ask for.

    Attributes:
        dims: parameter and dim to the entries that ask for it to be split, and whether firmly.
        experts: the same, over the axis for experts.
        sequences: modules whose result is to be split along the sequence.
        unused: entries that match nothing or have an unknown style, each with the reason.
        entries: every entry that asks for parameters to be split, with the dims it asks for.
    """

    dims: dict[tuple[str, int], bool] = field(default_factory=dict)
    experts: set[tuple[str, int]] = field(default_factory=set)
    sequences: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    entries: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def renamed(self, aliases: Mapping[str, str]) -> Wishes:
        """The same with tied parameters under their first names."""

        def first(pair: tuple[str, int]) -> tuple[str, int]:
            return aliases.get(pair[0], pair[0]), pair[1]

        return Wishes(
            {first(pair): firm for pair, firm in self.dims.items()},
            {first(pair) for pair in self.experts},
            self.sequences,
            self.unused,
            {entry: [first(pair) for pair in dims] for entry, dims in self.entries.items()},
        )


def plan_of(model: nn.Module, kind: str) -> dict[str, str]:
    """All entries of a model's `tp_plan` or `ep_plan`: its own, its parts', its config's."""
    found: dict[str, str] = {}
    for name, part in reversed(list(model.named_modules())):
        prefix = f"{name}." if name else ""
        found |= {prefix + key: style for key, style in _items(_own(part, f"_{kind}"))}
    base = getattr(model, "base_model_prefix", "")
    held = f"{base}." if base and hasattr(model, base) else ""
    for key, style in _items(getattr(_own(model, "config"), f"base_model_{kind}", None)):
        if not any(f".{known}".endswith(f".{key}") for known in found):
            found[held + key] = style
    return found


def _own(part: nn.Module, name: str) -> object:
    """A module's own attribute, or its class's: none of a module that it wraps."""
    return vars(part).get(name) or getattr(type(part), name, None)


def _items(plan: object) -> Iterable[tuple[str, str]]:
    """The entries of a plan whose styles are names."""
    if not isinstance(plan, Mapping):
        return []
    return [(key, style) for key, style in plan.items() if isinstance(style, str)]


def wishes_of(
    model: nn.Module, names: Mapping[str, int], plans: Iterable[Mapping[str, str]]
) -> Wishes:
    """What the entries of some plans ask for, of parameters given by name and rank."""
    made = Wishes()
    modules = dict(model.named_modules())
    for plan in plans:
        for key, style in plan.items():
            _read(made, f"{key}: {style}", key, STYLES.get(style), modules, names)
    return made


def _read(
    made: Wishes,
    entry: str,
    key: str,
    style: Style | None,
    modules: Mapping[str, nn.Module],
    names: Mapping[str, int],
) -> None:
    """Add what one entry asks for."""
    if style is None:
        made.unused.append(f"{entry} (unknown style)")
        return
    hits, owners = _matched(key, modules, names)
    if not hits and not owners:
        made.unused.append(f"{entry} (matches nothing)")
    elif style.splits == "sequence":
        made.sequences += owners
    elif style.splits != "nothing":
        dims = [pair for name in hits if (pair := _dim(name, style, modules, names)) is not None]
        if dims and style.splits == "experts":
            made.experts |= set(dims)
        elif dims:
            made.entries[entry] = dims
            for pair in dims:
                made.dims[pair] = made.dims.get(pair, False) or style.firm


def _matched(
    key: str, modules: Mapping[str, nn.Module], names: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """The parameters that an entry names, itself or through their module, and the modules."""
    try:
        pattern = compile_pattern(key)
    except PatternError:
        return [], []
    hits = [n for n in names if pattern.matches(n) or pattern.matches(n.rpartition(".")[0])]
    return hits, pattern.select(name for name in modules if name)


def _dim(
    name: str, style: Style, modules: Mapping[str, nn.Module], names: Mapping[str, int]
) -> tuple[str, int] | None:
    """The dim of a parameter that a style splits."""
    rank, module = names[name], modules.get(name.rpartition(".")[0])
    if style.splits == "experts":
        return name, 0
    if rank < 2:
        return (name, 0) if rank == 1 and style.splits == "out" and _beside(name, names) else None
    if isinstance(module, nn.Embedding) or style.splits in ("rows", "columns"):
        return name, 0 if style.splits in ("rows", "in") else 1
    flipped = type(module).__name__ == "Conv1D"
    return name, rank - 2 if (style.splits == "out") != flipped else rank - 1


def _beside(name: str, names: Mapping[str, int]) -> bool:
    """Whether a vector's module holds a matrix too, whose rows are as many."""
    owner = name.rpartition(".")[0]
    return any(rank > 1 and n.rpartition(".")[0] == owner for n, rank in names.items())
