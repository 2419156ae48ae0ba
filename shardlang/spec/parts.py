"""Parts of axes as statements name them: `tp:4`, `tp/4`, `tp/2:2`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, error
from shardlang.ir.mesh import part_name


@dataclass(slots=True)
class Parts:
    """The parts of axes that a spec names.

    Attributes:
        sizes: the size of every axis.
        named: by their names, the axis of each part, and the shards before it and after it.
        cuts: by axis, the numbers of shards at which a part begins or ends.
    """

    sizes: dict[str, int]
    named: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    cuts: dict[str, set[int]] = field(default_factory=dict)

    def shared(self, name: str, others: Iterable[str]) -> str | None:
        """The first of other axes, or parts of one, that splits devices as an axis does."""
        of, start, end = self._stretch(name)
        for other in others:
            base, first, last = self._stretch(other)
            if base == of and max(start, first) < min(end, last):
                return other
        return None

    def _stretch(self, name: str) -> tuple[str, int, int]:
        return self.named.get(name) or (name, 1, self.sizes[name])

    def enter(self, node: t.Part, axes: tuple[str, ...]) -> str | Diagnostic:
        """The name of a part of what `axes` are, or why there is none."""
        if len(axes) != 1 or axes[0] not in self.sizes:
            return _no_part(node, f"`{node.name.text}` is not one axis", "divide an axis")
        (of,) = axes
        size, after = self.sizes[of], node.after
        end = size if node.shards is None else after * node.shards
        if min(after, end) < 1 or size % end or end % after or after in (size, end):
            problem = f"axis `{of}` of {size} devices has no such part"
            help = f"write `{of}:n` or `{of}/n`, where n divides {size} and lies between"
            return _no_part(node, problem, f"{help} 1 and {size}")
        cuts = self.cuts.setdefault(of, set())
        for mine, other in ((mine, other) for mine in (after, end) for other in sorted(cuts)):
            if mine % other and other % mine:
                problem = f"a part of `{of}` ends at {other} shards, and this one at {mine}"
                return _no_part(node, problem, "let one number be a multiple of the other")
        cuts.update({after, end} - {1, size})
        name = part_name(of, size, after, end // after)
        self.named[name] = (of, after, end)
        return name


def _no_part(node: t.Part, problem: str, help: str) -> Diagnostic:
    return error("SH0235", problem, node.span, help=help)
