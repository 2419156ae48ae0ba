"""Which backend compiles the regions of a module: the loaded one's, or that of `torch.compile`."""

from __future__ import annotations

from shardlang.ir.compat import Backend, active_compiler, asks_for_one_graph, backend_of
from shardlang.runtime.errors import RunError
from shardlang.runtime.outside import outside_itself
from shardlang.runtime.region import Regions

INDUCTOR = "inductor"
"""What compiles regions unless a `torch.compile` names another backend."""


_around, _one_graph = outside_itself(active_compiler), outside_itself(asks_for_one_graph)


@outside_itself
def compiler_around() -> object | None:
    """What a `torch.compile` around the call of a module has put there, if there is one.

    Raises:
        RunError: SH0644, it asks for one graph.
    """
    around = _around()
    if around is not None and _one_graph():
        raise RunError(
            "SH0644",
            "a sharded module is compiled in regions between its collectives, and"
            " `fullgraph=True` asks for one graph",
            help="leave `fullgraph` out, or load the module with `load(compile=True)`: no region"
            " has a break",
        )
    return around


class Backends:
    """The compiled regions of a module, by what compiles them."""

    def __init__(self, own: Backend | None = None) -> None:
        """`own`: what compiles calls that no `torch.compile` is around; None to run them as is."""
        self.own = None if own is None else Regions(own)
        self._others: list[tuple[object, Regions]] = []

    def regions(self, around: object | None = None) -> Regions | None:
        """What compiles a call; `around` is what `compiler_around` found."""
        if around is None:
            return self.own
        for known, regions in self._others:
            if known is around:
                return regions
        self._others.append((around, Regions(backend_of(around))))
        return self._others[-1][1]

    def __deepcopy__(self, memo: dict[int, object]) -> Backends:
        """A copy of a module runs the same code."""
        return self
