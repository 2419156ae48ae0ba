"""The bytes that the collectives of a compiled XLA program send, read from its text.

The text is that of `compiled.as_text()`, after partitioning: one module, which every device runs.
Nothing here needs JAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip

UNKNOWN = ("collective-broadcast", "ragged-all-to-all", "send", "recv")
"""Ops that send bytes too, and that no program here has been seen to have."""

UNCHANGED = ("bitcast", "copy", "convert", "reshape", "transpose")
"""Ops that hand on all elements of their one operand."""

_WIDTHS = {"pred": 1, "s4": 1, "u4": 1, "f8": 1, "bf16": 2, "c64": 8, "c128": 16}
_HEAD = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_GROUPS = re.compile(
    r"replica_groups=(?:\{(?:\{([\d,]+)\}[^=]*)?\}|\[([\d,]+)\]<=|mesh\[([^\]]*)\][^{]*\{([^}]*)\})"
)
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line: its result's arrays as (itemsize, elements), its operands' names, the rest as text.

    Attributes:
        detail: what stands in the parentheses of the call: the number of a parameter.
    """

    name: str
    op: str
    arrays: tuple[tuple[int, int], ...]
    operands: tuple[str, ...]
    detail: str
    attributes: str
    is_root: bool


Computation = dict[str, Instruction]
"""Instructions by name, in the order of the text."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One collective: what the busiest device sends in all its calls."""

    op: str
    members: int
    calls: int
    bytes: int


def itemsize(dtype: str) -> int:
    """Bytes of one element: `f32`, `bf16`, `s64`, `f8e4m3fn`."""
    for name, width in _WIDTHS.items():
        if dtype.startswith(name):
            return width
    digits = re.search(r"\d+$", dtype)
    return int(digits[0]) // 8 if digits else 0


def arrays_of(text: str) -> tuple[tuple[int, int], ...]:
    """The arrays of a type: `f32[4,8]{1,0}`, or a tuple of such."""
    return tuple(
        (itemsize(dtype), math.prod(int(size) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(text)
    )


def closing(text: str) -> int:
    """The index of the parenthesis that closes the one at index 0."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return index
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def instruction(line: str) -> Instruction | None:
    """The instruction of a line; None where there is none."""
    found = _LINE.match(line)
    if not found:
        return None
    root, name, rest = found.groups()
    end = closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    op, bracket, rest = rest.partition("(")
    inside = closing(bracket + rest)
    detail, attributes = rest[: inside - 1], rest[inside:]
    names = tuple(_NAME.findall(detail))
    return Instruction(name, op, arrays_of(kind), names, detail, attributes, bool(root))


def read(text: str) -> tuple[dict[str, Computation], str]:
    """All computations by name, and the name of the entry.

    Raises:
        ValueError: there is no entry.
    """
    found: dict[str, Computation] = {}
    current, entry = "", ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = head[1]
            found[current] = {}
            entry = current if line.startswith("ENTRY") else entry
        made = instruction(line) if current else None
        if made:
            found[current][made.name] = made
    if not entry:
        raise ValueError("no ENTRY in the text")
    return found, entry


def members(attributes: str, devices: int) -> int:
    """How many devices a group has, in any of the three notations of `replica_groups`.

    `{{0,1},{2,3}}`, `[2,4]<=[8]` (groups, members), `mesh['x'=2,'y'=4] {'y'}` (the axes of a group;
    `'y':(2)2` is a part of an axis). Empty groups are all devices.

    Raises:
        ValueError: the groups are written in another way.
    """
    found = _GROUPS.search(attributes)
    if found is None:
        raise ValueError(f"no groups are read in: {attributes[:120]}")
    listed, counted, mesh, axes = found.groups()
    if counted:
        return int(counted.split(",")[1])
    if mesh is not None:
        return _along_axes(mesh, axes)
    return len(listed.split(",")) if listed else devices


def _along_axes(mesh: str, axes: str) -> int:
    sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes)
    return math.prod(int(part) if part else sizes[axis] for axis, part in named)


class Program:
    """A compiled program of `devices` devices."""

    def __init__(self, text: str, devices: int) -> None:
        self.computations, self.entry = read(text)
        self.devices = devices

    def sent(self) -> list[Sent]:
        """Every collective with what the busiest device sends in it, loops counted as they run."""
        return list(self._sent(self.entry, 1))

    def _sent(self, name: str, times: int) -> Iterator[Sent]:
        for made in self.computations[name].values():
            op = made.op.removesuffix("-start")
            if op in UNKNOWN:
                raise ValueError(f"`{op}` is not counted: %{made.name}")
            if op in COLLECTIVES:
                yield self._collective(op, made, self.computations[name], times)
            elif op == "conditional":
                yield from self._dearest(made, times)
            else:
                for inner, count in called(made):
                    yield from self._sent(inner, times * count)

    def _dearest(self, made: Instruction, times: int) -> list[Sent]:
        """What the branch that sends most sends."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", made.attributes)
        pair = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", made.attributes)
        names = _NAME.findall(branches[1]) if branches else pair
        found = [list(self._sent(name, times)) for name in names]
        return max(found, key=lambda branch: sum(one.bytes for one in branch))

    def _collective(self, op: str, made: Instruction, computation: Computation, times: int) -> Sent:
        if op == "collective-permute":
            return Sent(op, self.devices, times, times * self._permuted(made))
        count = members(made.attributes, self.devices)
        arrays = made.arrays
        if made.op.endswith("-start") and op == "all-gather":
            arrays = arrays[len(made.operands) :]
        rounds = [1] * len(arrays)
        if op == "reduce-scatter":
            rounds = [count] * len(arrays)
        if op == "all-reduce":
            inside = (computation, count)
            rounds = [1 + self._read_again(made, i, *inside) for i in range(len(arrays))]
            op = "reduce-scatter" if max(rounds) == 1 else op
        messages = (width * size * n for (width, size), n in zip(arrays, rounds, strict=True))
        once = sum(message * (count - 1) // count for message in messages)
        return Sent(op, count, times, times * once)

    def _permuted(self, made: Instruction) -> int:
        """What the busiest device sends: the array to each of its targets but itself."""
        text = re.search(r"source_target_pairs=\{(.*?)\}\}", made.attributes)
        pairs = re.findall(r"(\d+),(\d+)", text[1]) if text else []
        sources = [source for source, target in pairs if source != target]
        most = max((sources.count(source) for source in sources), default=0)
        width, size = made.arrays[0]
        return most * width * size

    def _read_again(self, made: Instruction, index: int, inside: Computation, count: int) -> bool:
        """Whether a sum must be gathered after it is scattered: not where only slices are read."""
        size = made.arrays[index][1]
        items = [user for user in users(made.name, inside) if user.op == "get-tuple-element"]
        is_mine = re.compile(rf"index={index}\b").search
        names = [user.name for user in items if is_mine(user.attributes)] if items else [made.name]
        return not names or not all(self._only_sliced(one, inside, size // count) for one in names)

    def _only_sliced(self, name: str, inside: Computation, most: int) -> bool:
        """Whether a value is read by slices of at most so many elements alone."""
        if inside[name].is_root:
            return False
        found = users(name, inside)
        return bool(found) and all(self._slices(user, name, inside, most) for user in found)

    def _slices(self, user: Instruction, name: str, inside: Computation, most: int) -> bool:
        if user.op == "dynamic-slice":
            return user.operands[0] == name and user.arrays[0][1] <= most
        if user.op in UNCHANGED:
            return self._only_sliced(user.name, inside, most)
        if user.op != "fusion":
            return False
        fused = self.computations[next(inner for inner, _ in called(user))]
        places = {str(i) for i, operand in enumerate(user.operands) if operand == name}
        read = (one for one in fused.values() if one.op == "parameter" and one.detail in places)
        return all(self._only_sliced(one.name, fused, most) for one in read)


def users(name: str, computation: Computation) -> list[Instruction]:
    """The instructions that read a value."""
    return [made for made in computation.values() if name in made.operands]


def called(made: Instruction) -> list[tuple[str, int]]:
    """The computations that an instruction runs, and how often.

    Raises:
        ValueError: the number of turns of a loop is not known.
    """
    if made.op != "while":
        names = re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", made.attributes)
        return [(name, 1) for name in names]
    turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', made.attributes)
    if not turns:
        raise ValueError(f"the turns of the loop %{made.name} are not known")
    names = re.findall(r"(?:body|condition)=%([\w.\-]+)", made.attributes)
    return [(name, int(turns[1])) for name in names]
