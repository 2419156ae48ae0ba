"""Which modules of a model make a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """The stages of a pipeline, by the modules that begin and fill them.

    Attributes:
        stage_of: dotted module to the stage that computes it and all below it.
        stages: how many there are.
    """

    stage_of: Mapping[str, int]
    stages: int

    def of(self, module: str) -> int | None:
        """The stage that a module is stated for; None if the spec says nothing of it."""
        owner = self.owner(module)
        return None if owner is None else self.stage_of[owner]

    def owner(self, module: str) -> str | None:
        """The stated module that a module is, or lies in."""
        return next((name for name in _outwards(module) if name in self.stage_of), None)

    @staticmethod
    def evenly(layers: str, count: int, stages: int) -> Split:
        """The layers of a module list in `stages` runs, none longer than another by more than one.

        Args:
            layers: the module list; its modules are `layers.0` to `layers.{count - 1}`.
        """
        return Split.dealt([f"{layers}.{i}" for i in range(count)], stages)

    @staticmethod
    def dealt(modules: Sequence[str], stages: int) -> Split:
        """Modules in `stages` runs, none longer than another by more than one."""
        count = len(modules)
        return Split({name: i * stages // count for i, name in enumerate(modules)}, stages)


def _outwards(module: str) -> Iterator[str]:
    """A module, the one that holds it, and so on."""
    while module:
        yield module
        module = module.rpartition(".")[0]
