"""Which backend compiles the regions of a module: the loaded one's, or that of `torch.compile`."""

from __future__ import annotations

from shardlang.ir.compat import Backend, active_backend, asks_for_one_graph
from shardlang.runtime.errors import RunError
from shardlang.runtime.outside import outside_itself
from shardlang.runtime.region import Regions

INDUCTOR = "inductor"
"""What compiles regions unless a `torch.compile` names another backend."""


@outside_itself
def asked_backend() -> Backend | None:
    """The backend of the `torch.compile` under which a module is called, if it is.

    Raises:
        RunError: SH0644, it asks for one graph.
    """
    asked = active_backend()
    if asked is not None and asks_for_one_graph():
        raise RunError(
            "SH0644",
            "a sharded module is compiled in regions between its collectives, and"
            " `fullgraph=True` asks for one graph",
            help="leave `fullgraph` out, or load the module with `load(compile=True)`: no region"
            " has a break",
        )
    return asked


class Backends:
    """The compiled regions of a module, by backend."""

    def __init__(self, own: Backend | None = None) -> None:
        """`own`: what compiles calls that no `torch.compile` asks for; None to run them as is."""
        self.own = None if own is None else Regions(own)
        self._asked: list[Regions] = []

    def regions(self, asked: Backend | None = None) -> Regions | None:
        """What compiles a call; `asked` is the backend of the `torch.compile` around it."""
        if asked is None:
            return self.own
        found = next((one for one in self._asked if one.backend is asked), None)
        if found is None:
            found = Regions(asked)
            self._asked.append(found)
        return found

    def __deepcopy__(self, memo: dict[int, object]) -> Backends:
        """A copy of a module runs the same code."""
        return self
