"""What each mesh axis is for, read off its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardlang.ir.mesh import Axis, Mesh

_DATA = ("dp", "data", "ddp", "batch", "replica", "replicate", "dp_replicate")
_STORED = ("fsdp", "hsdp", "zero", "shard", "dp_shard")
_MODEL = ("tp", "model", "mp", "tensor")
_EXPERT = ("ep", "expert", "experts")
_REFUSED = {
    "pp": "pipeline stages", "pipe": "pipeline stages", "pipeline": "pipeline stages",
    "stage": "pipeline stages", "cp": "sequences split for attention",
    "sp": "sequences split for attention", "seq": "sequences split for attention",
}  # fmt: skip


class AxesError(ValueError):
    """A mesh, or an axis of it, that no first spec can be written for."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The axes of a mesh by what they split.

    Attributes:
        batch: the axes that split the batch, major to minor.
        stored: those over which parameters are stored in parts.
        model: the axis that splits parameters and their computation.
        experts: the axis that splits the experts of a mixture.
    """

    mesh: Mesh
    batch: tuple[Axis, ...] = ()
    stored: tuple[Axis, ...] = ()
    model: Axis | None = None
    experts: Axis | None = None

    @property
    def shards(self) -> int:
        """The number of parts of the batch."""
        shards = 1
        for axis in self.batch:
            shards *= axis.size
        return shards


def parse_mesh(text: str) -> Mesh:
    """The mesh that `dp=2,tp=4` describes.

    Raises:
        AxesError: the text is not a list of names and sizes.
    """
    axes: list[Axis] = []
    for part in text.split(","):
        name, equals, size = (shard.strip() for shard in part.partition("="))
        if not equals or not name.isidentifier() or not size.isdecimal() or int(size) < 1:
            raise AxesError(f"`{part.strip()}` is not an axis and its size; write `dp=2,tp=4`")
        if name in (axis.name for axis in axes):
            raise AxesError(f"axis `{name}` stands twice")
        axes.append(Axis(name, int(size)))
    return Mesh(tuple(axes))


def roles_of(mesh: Mesh, store: str | None = None) -> Roles:
    """What each axis is for.

    A name that says nothing is a data axis if another is left for the model, and then the model
    axis. `store` names the axes to store parameters over, instead of those called `fsdp`.

    Raises:
        AxesError: an axis has no role, or `store` names none of the mesh.
    """
    named = _named(mesh)
    having = {
        role: tuple(axis for axis, mine in named.items() if mine == role)
        for role in ("data", "stored", "model", "experts", None)
    }
    unknown = [*having[None], *having["model"][1:], *having["experts"][1:]]
    if unknown:
        raise AxesError(
            f"axis `{unknown[0].name}` has no role; call the axes dp or fsdp (the batch), tp (the"
            " model) and ep (experts), each of the last two once"
        )
    return Roles(
        mesh,
        tuple(axis for axis, role in named.items() if role in ("data", "stored")),
        having["stored"] if store is None else _stored(mesh, store),
        next(iter(having["model"]), None),
        next(iter(having["experts"]), None),
    )


def _named(mesh: Mesh) -> dict[Axis, str | None]:
    """The role of each axis, as far as the names and what is missing tell."""
    named = {axis: _role(axis.name) for axis in mesh.axes}
    unknown = [axis for axis, role in named.items() if role is None]
    has_data = "data" in named.values() or "stored" in named.values()
    has_model = "model" in named.values()
    if unknown and not has_data and (has_model or len(unknown) > 1):
        named[unknown.pop(0)] = "data"
    if unknown and not has_model:
        named[unknown.pop(0)] = "model"
    return named


def _role(name: str) -> str | None:
    base = name.lower().removesuffix("_parallel")
    if base in _REFUSED:
        raise AxesError(f"`init` writes no {_REFUSED[base]}; leave axis `{name}` out")
    for role, names in (("data", _DATA), ("stored", _STORED), ("model", _MODEL)):
        if base in names:
            return role
    return "experts" if base in _EXPERT else None


def _stored(mesh: Mesh, text: str) -> tuple[Axis, ...]:
    names: Sequence[str] = [name.strip() for name in text.replace("*", ",").split(",")]
    known = {axis.name: axis for axis in mesh.axes}
    for name in names:
        if name not in known:
            raise AxesError(f"the mesh has no axis `{name}` to store over")
    return tuple(known[name] for name in names)
